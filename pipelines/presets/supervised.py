"""ImageNet-1K from scratch, with labels: what FCMAE is compared with.

No recipe was released for ConvNeXt V2 (issue 38 of its repository). Constants and where they are
from:

Tiny, Base, Large: ConvNeXt V1's recipe (arXiv 2201.03545, Table 5 and the released commands):
    AdamW, 4e-3 at batch 4096, decay 0.05, 300 epochs of which 20 of warm-up, RandAugment (9, 0.5),
    mixup 0.8, cutmix 1.0, erasing 0.25, label smoothing 0.1, EMA 0.9999, drop path 0.1 (Tiny),
    0.5 (Base, Large). V2 has no layer scale.
Atto, Femto, Pico, Nano: nothing is published. Rate, batch, decay and length as above; label
    smoothing, mixup, cutmix and drop path as ConvNeXt V2 fine-tunes these sizes (Table 9).
Huge: nothing is published, not even a result. As Large.
All: head_init_scale 1.0; the 0.001 of fine-tuning costs 4 to 7 points from scratch (issue 43).
    GRN is spared from weight decay, as in V2's fine-tuning.
"""

from pipelines.config import PipelineConfig
from pipelines.presets.recipe import PAPER, Preset, Row, fine_tuning, imagenet, on_gpus

# fmt: off
FROM_SCRATCH = {
    #            lr      decay layers         epochs warm-up smooth mixup cutmix drop path
    # V2's Table 9 from smoothing on.
    "atto":  Row(2.5e-4, 0.05, 1.0, "single", 300,   20,     0.2,   0.0,  0.0,   0.1),
    "femto": Row(2.5e-4, 0.05, 1.0, "single", 300,   20,     0.2,   0.3,  0.3,   0.0),
    "pico":  Row(2.5e-4, 0.05, 1.0, "single", 300,   20,     0.2,   0.3,  0.3,   0.0),
    "nano":  Row(2.5e-4, 0.05, 1.0, "single", 300,   20,     0.2,   0.5,  0.5,   0.1),
    # V1's Table 5; Huge is ours.
    "tiny":  Row(2.5e-4, 0.05, 1.0, "single", 300,   20,     0.1,   0.8,  1.0,   0.1),
    "base":  Row(2.5e-4, 0.05, 1.0, "single", 300,   20,     0.1,   0.8,  1.0,   0.5),
    "large": Row(2.5e-4, 0.05, 1.0, "single", 300,   20,     0.1,   0.8,  1.0,   0.5),
    "huge":  Row(2.5e-4, 0.05, 1.0, "single", 300,   20,     0.1,   0.8,  1.0,   0.5),
}
# fmt: on

# Top-1: Table 14, "V2 supervised".
PUBLISHED = {
    "atto": "76.2", "femto": "78.0", "pico": "79.7", "nano": "81.2", "tiny": "82.5", "base": "84.3",
    "large": "84.5", "huge": "none",
}  # fmt: skip


def _preset(size: str) -> Preset:
    name = f"supervised-{size}"

    def build() -> PipelineConfig:
        recipe = fine_tuning(
            size,
            FROM_SCRATCH[size],
            batch=4096,
            ema_decay=0.9999,
            head_init_scale=1.0,
        )
        return imagenet(name, size, pretrain=None, finetune=recipe)

    return Preset(
        name=name,
        what=f"from scratch with labels, {size.capitalize()}",
        published=PUBLISHED[size],
        about=__doc__ or "",
        command=f"convnextv2 run {name} --data /data/imagenet {on_gpus('finetune')}",
        build=build,
    )


PRESETS = [_preset(size) for size in PAPER]
