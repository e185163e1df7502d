"""With ImageNet-22K as intermediate step: FCMAE on 1K, fine-tuning on 22K, then on 1K.

Fine-tuning on 22K is the paper's Table 12, on 1K its Table 13.

--data is ImageNet-1K, intermediate.data.source is ImageNet-22K. The last step sees 224, 384 or
512 px; pretraining and the 22K step always 224. What the paper leaves open:

layer_decay_groups: it has groups for Base and Large and layers of one block for the others; here
    that holds for all steps of fine-tuning.
augment.random_erasing, min_lr: 0.25 and 1e-6, the defaults of the released code, as in fine-tuning
    on 1K.
imagenet22k-huge-384 and -512: the text says of the best Huge that 384 px were used "for
    pre-training and fine-tuning", and all released FCMAE weights are of 224. 224 is taken here;
    model.image_size changes pretraining.
intermediate.data.val_fraction: the 22K have no validation split. 0.35% of them, about 50,000
    images, are held out to follow training; the paper mentions no such split.

No weights between the steps were released, nor a command for 22K. Batches are 4096, 4096 and 512
images on any number of GPUs; micro_batch_size is for eight GPUs of 80 GB (an estimate).
"""

from convnextv2.recipe.duration import epochs
from pipelines.config import IntermediateConfig, PipelineConfig
from pipelines.presets.recipe import (
    Preset,
    Row,
    fine_tuning,
    imagenet,
    imagenet_data,
    on_gpus,
    pretraining,
)

# fmt: off
ON_22K = {  # Table 12.
    #            lr      decay layers          epochs warm-up smooth mixup cutmix drop path
    "nano":  Row(2.5e-4, 0.05, 0.9,  "single", 90,    5,      0.1,   0.8,  1.0,   0.0),
    "tiny":  Row(2.5e-4, 0.05, 0.9,  "single", 90,    5,      0.1,   0.8,  1.0,   0.0),
    "base":  Row(2.5e-4, 0.05, 0.8,  "group",  90,    5,      0.1,   0.8,  1.0,   0.1),
    "large": Row(2.5e-4, 0.05, 0.8,  "group",  90,    5,      0.1,   0.8,  1.0,   0.1),
    "huge":  Row(2.5e-4, 0.05, 0.8,  "single", 90,    5,      0.1,   0.8,  1.0,   0.3),
}
ON_1K = {  # Table 13.
    "nano":  Row(2.5e-5, 1e-8, 0.9,  "single", 90,    0,      0.1,   0.0,  0.0,   0.1),
    "tiny":  Row(2.5e-5, 1e-8, 0.9,  "single", 90,    0,      0.1,   0.0,  0.0,   0.1),
    "base":  Row(2.5e-5, 1e-8, 0.8,  "group",  30,    0,      0.1,   0.0,  0.0,   0.2),
    "large": Row(2.5e-5, 1e-8, 0.8,  "group",  30,    0,      0.1,   0.0,  0.0,   0.3),
    "huge":  Row(2.5e-5, 1e-8, 0.85, "single", 30,    0,      0.1,   0.0,  0.0,   0.5),
}
# fmt: on

# Top-1: Table 15, with three digits as timm counts for the released weights.
PUBLISHED = {
    ("nano", 224): "82.1 (82.038 by timm)",
    ("tiny", 224): "83.9 (83.904 by timm)",
    ("base", 224): "86.8 (86.752 by timm)",
    ("large", 224): "87.3 (87.266 by timm)",
    ("huge", 224): "none at 224",
    ("nano", 384): "83.4 (83.366 by timm)",
    ("tiny", 384): "85.1 (85.098 by timm)",
    ("base", 384): "87.7 (87.638 by timm)",
    ("large", 384): "88.2 (88.180 by timm)",
    ("huge", 384): "88.7 (88.666 by timm)",
    ("huge", 512): "88.9 (88.860 by timm)",
}


def _preset(size: str, side: int) -> Preset:
    name = f"imagenet22k-{size}" + ("" if side == 224 else f"-{side}")

    def build() -> PipelineConfig:
        return imagenet(
            name,
            size,
            largest=side,
            pretrain=pretraining(size, epochs(1600)),
            intermediate=IntermediateConfig(
                data=imagenet_data(max_resolution=512, val_fraction=0.0035),
                **dict(fine_tuning(size, ON_22K[size], batch=4096, ema_decay=None)),
            ),
            finetune=fine_tuning(
                size,
                ON_1K[size],
                batch=512,
                ema_decay=None if size == "huge" else 0.9999,
                image_size=side,
            ),
        )

    return Preset(
        name=name,
        what=f"FCMAE, fine-tuning on 22K, then on 1K at {side} px, {size.capitalize()}",
        published=PUBLISHED[size, side],
        about=__doc__ or "",
        command=f"convnextv2 run {name} --data /data/imagenet "
        f"--set intermediate.data.source=/data/imagenet22k "
        f"{on_gpus('pretrain', 'intermediate', 'finetune')}",
        build=build,
    )


PRESETS = [_preset(size, side) for size, side in PUBLISHED]
