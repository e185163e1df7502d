"""How good are the pretrained features as they are? FCMAE for 1600 epochs, then a frozen encoder.

The pretraining is that of imagenet1k-<size>: in the same --run-dir it is not done again.

linear-probe-<size>: only a linear layer is trained. 90 epochs of which 10 of warm-up, no weight
    decay, crops and flips only, as MAE does it (arXiv 2111.06377, Table 10). MAE has LARS at batch
    16384; here it is AdamW at batch 1024, and its rate, 1e-3, is ours and was not searched for.
knn-<size>: nothing is trained. 20 neighbours vote by exp(cosine / 0.07), as DINO does it (arXiv
    2104.14294).

The ConvNeXt V2 paper publishes neither. micro_batch_size is for eight GPUs of 80 GB (an estimate).
"""

from convnextv2.recipe.duration import Duration, epochs
from pipelines.config import AugmentConfig, FinetuneConfig, KnnConfig, PipelineConfig
from pipelines.presets.recipe import PAPER, Preset, imagenet, on_gpus, pretraining

LINEAR = FinetuneConfig(
    trainable="head",
    duration=epochs(90),
    warmup=epochs(10),
    global_batch_size=1024,
    micro_batch_size=128,
    base_lr=2.5e-4,
    weight_decay=0.0,
    label_smoothing=0.0,
    head_init_scale=1.0,
    augment=AugmentConfig(crop_scale=(0.08, 1.0), flip=0.5),
    checkpoint_every="auto",
    evaluate_every=Duration(5, "%"),
)


def _preset(
    name: str,
    what: str,
    size: str,
    *,
    linear_probe: FinetuneConfig | None = None,
    knn: KnnConfig | None = None,
) -> Preset:
    def build() -> PipelineConfig:
        pretrain = pretraining(size, epochs(1600))
        return imagenet(name, size, pretrain=pretrain, linear_probe=linear_probe, knn=knn)

    trained = ["pretrain", *(["linear_probe"] if linear_probe else [])]
    return Preset(
        name=name,
        what=f"FCMAE, 1600 epochs, then {what}, {size.capitalize()}",
        published="none",
        about=__doc__ or "",
        command=f"convnextv2 run {name} --data /data/imagenet {on_gpus(*trained)}",
        build=build,
    )


PRESETS = [
    *(
        _preset(f"linear-probe-{size}", "a linear classifier of its features", size,
                linear_probe=LINEAR)
        for size in PAPER
    ),
    *(
        _preset(f"knn-{size}", "nearest neighbours of its features", size, knn=KnnConfig())
        for size in PAPER
    ),
]  # fmt: skip
