"""The demo: the whole job on Fashion-MNIST, on a laptop CPU, in minutes.

70,000 photographs of clothes, 28 px: pretrain on 20,000 of them, fine-tune on 1,000 labels, once
from the pretrained encoder and once from scratch, and test both on 10,000. Nothing of it is
published; what was measured is the mean of the three seeds in README.md, section "The demo".
"""

from convnextv2.recipe.duration import epochs, steps
from pipelines.config import (
    AugmentConfig,
    ClusterConfig,
    DataConfig,
    EvaluateConfig,
    FinetuneConfig,
    ModelConfig,
    PipelineConfig,
    PretrainConfig,
    WriteConfig,
)
from pipelines.presets.recipe import Preset


def demo() -> PipelineConfig:
    """Small enough for two CPU cores."""
    augment = AugmentConfig(crop_scale=(0.6, 1.0), flip=0.5)
    return PipelineConfig(
        name="demo",
        data=DataConfig(write=WriteConfig(mode="raw")),
        model=ModelConfig(size="pocket", image_size=32, patch_size=8, stem_stride=1),
        pretrain=PretrainConfig(
            duration=epochs(8),
            train_images=20_000,
            global_batch_size=128,
            micro_batch_size=64,
            base_lr=4e-3,
            warmup=epochs(1),
            decoder_dim=128,
            augment=augment,
            checkpoint_every=steps(100),
        ),
        finetune=FinetuneConfig(
            duration=epochs(27),
            labels_per_class=100,
            scratch_baseline=True,
            global_batch_size=64,
            micro_batch_size=32,
            base_lr=6e-3,
            warmup=epochs(2),
            augment=augment,
            checkpoint_every=steps(100),
        ),
        evaluate=EvaluateConfig(crop=1.0),
        cluster=ClusterConfig(num_workers=2),
    )


PRESETS = [
    Preset(
        name="demo",
        what="FCMAE, fine-tuning and a baseline from scratch on Fashion-MNIST, Pocket",
        published="none; measured here: 79.25 against 75.76 from scratch",
        about=__doc__ or "",
        command="convnextv2 demo",
        build=demo,
        cost="5 minutes on 2 CPU cores",
    )
]
