"""ImageNet-1K: FCMAE pretraining and end-to-end fine-tuning of Atto as in the paper.

Command: convnextv2 run imagenet1k --set data.source=/data/imagenet --set cluster.num_workers=64 \
             --set cluster.use_gpu=true --set cluster.dtype=bf16
Published: 76.7 top-1 at 224 (Table 14, 1600 epochs of pretraining). Not run yet: EMA of Table 9 is
not part of this version, so expect less.
Pretraining constants: Table 8. Fine-tuning constants: Table 9, column Atto.
"""

from convnextv2.recipe.duration import epochs, steps
from pipelines.config import (
    AugmentConfig,
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    PipelineConfig,
    PretrainConfig,
    WriteConfig,
)


def imagenet1k() -> PipelineConfig:
    """Batch 4096 for pretraining and 1024 for fine-tuning, whatever the number of workers."""
    return PipelineConfig(
        name="imagenet1k",
        log_every=50,
        data=DataConfig(
            num_workers=10,
            write=WriteConfig(mode="jpg", max_resolution=512, max_unreadable=100),
        ),
        model=ModelConfig(size="atto", image_size=224, patch_size=32),
        pretrain=PretrainConfig(
            duration=epochs(1600),
            global_batch_size=4096,
            micro_batch_size=64,
            base_lr=1.5e-4,
            warmup=epochs(40),
            weight_decay=0.05,
            betas=(0.9, 0.95),
            augment=AugmentConfig(crop_scale=(0.2, 1.0)),
            checkpoint_every=steps(1000),
        ),
        finetune=FinetuneConfig(
            duration=epochs(600),
            global_batch_size=1024,
            micro_batch_size=16,
            base_lr=2e-4,
            min_lr=1e-6,
            weight_decay=0.3,
            layer_decay=0.9,
            label_smoothing=0.2,
            drop_path=0.1,
            head_init_scale=0.001,
            augment=AugmentConfig(crop_scale=(0.08, 1.0), rand_augment=9.0, erasing=0.25),
            checkpoint_every=steps(1000),
        ),
    )
