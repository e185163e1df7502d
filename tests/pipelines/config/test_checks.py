"""Settings that are right each for itself, and what is said when they do not go together."""

import pytest

from pipelines.presets import ConfigError, load_preset

STAGE_3_NVME = ("cluster.zero.stage=3", "cluster.zero.offload_optimizer=nvme",
                "cluster.zero.nvme_path=/nvme")  # fmt: skip


def problems(preset: str, *overrides: str) -> list[str]:
    try:
        load_preset(preset, overrides)
    except ConfigError as error:
        return error.problems
    return []


# Preset, overrides that contradict each other, what is said, and an override that mends it.
CONFLICTS = {
    "zero": (
        "demo",
        ["cluster.zero.offload_param=cpu"],
        "cluster.zero.offload_param: means something in stage 3 only, this is stage 1",
        "cluster.zero.stage=3",
    ),
    "numbers of workers that do not divide": (
        "demo",
        ["finetune=null", "cluster.num_workers={min: 1, max: 3}"],
        "pretrain: global_batch_size 128 does not divide into 3 workers x micro_batch_size 64; "
        "global_batch_size 192 would work; of 1 to 3 workers, 1 or 2 would",
        "cluster.num_workers={min: 1, max: 2}",
    ),
    "more at least than at most": (
        "demo",
        ["cluster.num_workers={min: 2, max: 1}"],
        "cluster.num_workers: min 2 is more than max 1",
        "cluster.num_workers=2",
    ),
    "compiled under stage 3": (
        "demo",
        ["cluster.zero.stage=3", "finetune.compile=true"],
        "finetune.compile: ZeRO stage 3 fetches parameters layer by layer, which one compiled "
        "graph leaves no room for; cluster.zero.stage 0, 1 or 2 would work, or compile=false",
        "cluster.zero.stage=2",
    ),
    "colours of other channels": (
        "demo",
        ["model.in_channels=5", "finetune.augment.rand_augment=9"],
        "finetune.augment.rand_augment: changes colours of RGB of 8 bits, and model.in_channels is "
        "5; 0 would work",
        "finetune.augment.rand_augment=0",
    ),
    "colours of 16 bits": (
        "demo",
        ["data.write.bits=16", "pretrain.augment.color_jitter=0.4"],
        "pretrain.augment.color_jitter: changes colours of RGB of 8 bits, and write.bits is 16; 0 "
        "would work",
        "data.write.bits=8",
    ),
    "JPEGs of other channels": (
        "demo",
        ["model.in_channels=1", "data.write.mode=proportion"],
        "data.write.mode: proportion makes JPEGs of RGB of 8 bits, and model.in_channels is 1; raw "
        "would work",
        "data.write.mode=raw",
    ),
    "zero and the precision of one recipe": (
        "demo",
        ["cluster.zero.stage=0", "cluster.use_gpu=true", "finetune.dtype=bf16"],
        "cluster.zero.stage: 0 in bf16 has DeepSpeed wait for the GPU and treat every parameter by "
        "itself; stage 1 is faster and needs no more memory",
        "finetune.dtype=fp32",
    ),
    "graphs on CPUs": (
        "demo",
        ["cluster.cuda_graph=true"],
        "cluster.cuda_graph: workers are on CPUs; set cluster.use_gpu, or leave it out",
        "cluster.use_gpu=true",
    ),
    "graphs and stage 3": (
        "demo",
        ["cluster.cuda_graph=true", "cluster.use_gpu=true", "cluster.zero.stage=3"],
        "cluster.cuda_graph: ZeRO's stage 3 gathers parameters during a pass, which a replay would "
        "not do; cluster.zero.stage 1 or 2 would work",
        "cluster.zero.stage=2",
    ),
    "graphs and shapes that vary": (
        "demo",
        ["cluster.cuda_graph=true", "cluster.use_gpu=true", "pretrain.backend=auto"],
        "pretrain.backend: shapes of auto vary, which cluster.cuda_graph cannot record; gather "
        "would work",
        "pretrain.backend=gather",
    ),
    "graphs and compiled code": (
        "demo",
        ["cluster.cuda_graph=true", "cluster.use_gpu=true", "finetune.compile=true"],
        "finetune.compile: torch.compile and cluster.cuda_graph do not go together; set one of "
        "them",
        "cluster.cuda_graph=false",
    ),
    "graphs and activations computed again": (
        "demo",
        ["cluster.cuda_graph=true", "cluster.use_gpu=true",
         "pretrain.activation_checkpointing=[2]"],
        "pretrain.activation_checkpointing: it saves the state of random numbers in the midst of a "
        "pass, which cluster.cuda_graph cannot record; leave one of them out",
        "pretrain.activation_checkpointing=[]",
    ),
    "zero and workers": (
        "demo",
        ["cluster.zero.stage=3", "cluster.zero.hpz_partition_size=3"],
        "cluster.zero.hpz_partition_size: 3 does not divide 2 workers",
        "cluster.zero.hpz_partition_size=2",
    ),
    "zero and processor": (
        "demo",
        ["cluster.zero.stage=3", "cluster.zero.quantized_weights=true"],
        "cluster.zero.quantized_weights: its kernels are for GPUs; set use_gpu, or leave it out",
        "cluster.use_gpu=true",
    ),
    "optimizer on nvme": (
        "demo",
        [*STAGE_3_NVME, "cluster.zero.offload_param=nvme"],
        "cluster.zero.offload_optimizer: checkpoints and the EMA are taken from memory, and on "
        "nvme the optimizer's state is not there; cpu would work (offload_param may go to nvme)",
        "cluster.zero.offload_optimizer=cpu",
    ),
    "warm-up in images": (
        "demo",
        ["pretrain.duration=100 steps", "pretrain.warmup=12928 images"],
        "pretrain.warmup: 12928 images is longer than the 100 steps of training",
        "pretrain.warmup=12800 images",
    ),
    "length in images": (
        "demo",
        ["finetune.duration=6400 images", "finetune.warmup=101 steps"],
        "finetune.warmup: 101 steps is longer than the 6400 images of training",
        "finetune.warmup=100 steps",
    ),
    "percent of itself": (
        "demo",
        ["pretrain.duration=5%"],
        "pretrain.duration: 5% of what? Epochs, steps or images would work",
        "pretrain.duration=5 epochs",
    ),
    "best of what pretraining has not": (
        "demo",
        ["pretrain.keep_best=accuracy"],
        "pretrain.keep_best: 'accuracy' is not measured in this training; loss would work",
        "pretrain.keep_best=loss",
    ),
    "best of what is unknown": (
        "demo",
        ["finetune.keep_best=top1"],
        "finetune.keep_best: 'top1' is not measured in this training; loss or accuracy would work",
        "finetune.keep_best=accuracy",
    ),
    "best of what is not evaluated": (
        "demo",
        ["finetune.keep_best=val_top1"],
        "finetune.keep_best: 'val_top1' is not measured in this training; loss or accuracy would "
        "work, or set evaluate_every",
        "finetune.evaluate_every=1 epoch",
    ),
    "best average without one": (
        "demo",
        ["finetune.keep_best=val_top1_ema", "finetune.evaluate_every=5%"],
        "finetune.keep_best: 'val_top1_ema' is not measured in this training; loss, accuracy, "
        "val_top1, val_top5 or val_loss would work, or set ema_decay",
        "finetune.ema_decay=0.999",
    ),
    "precision of images of one class": (
        "demo",
        ["finetune.keep_best=val_map", "finetune.evaluate_every=5%"],
        "finetune.keep_best: 'val_map' is not measured in this training; loss, accuracy, "
        "val_top1, val_top5 or val_loss would work, or set data.multi_label",
        "data.multi_label=true",
    ),
    "evaluation without labels": (
        "demo",
        ["pretrain.evaluate_every=1 epoch"],
        "pretrain.evaluate_every: pretraining has no labels to be evaluated by; leave it out",
        "pretrain.evaluate_every=null",
    ),
    "mixed reconstructions": (
        "demo",
        ["pretrain.augment.mixup=0.8"],
        "pretrain.augment: FCMAE reconstructs images; set mixup and cutmix to 0",
        "pretrain.augment.mixup=0",
    ),
    "groups of other depths": (
        "imagenet1k-tiny",
        ["finetune.layer_decay_groups=group"],
        "finetune.layer_decay_groups: group is defined for depths 3, 3, 27, 3, and tiny has "
        "3, 3, 9, 3; single would work",
        "model.size=base",
    ),
    "side": (
        "imagenet1k-tiny",
        ["finetune.image_size=250"],
        "finetune.image_size: 250 is no multiple of the total stride 32 (8 x model.stem_stride); "
        "224 or 256 would work",
        "finetune.image_size=256",
    ),
    "decay of a frozen encoder": (
        "linear-probe-atto",
        ["linear_probe.layer_decay=0.9"],
        "linear_probe.layer_decay: only the head is trained, without the layers it is for; set 1",
        "linear_probe.layer_decay=1",
    ),
    "probe that trains everything": (
        "linear-probe-atto",
        ["linear_probe.trainable=all"],
        "linear_probe.trainable: a probe trains the head alone; set head, or use finetune",
        "linear_probe.trainable=head",
    ),
    "drop path of a frozen encoder": (
        "demo",
        ["finetune.trainable=head", "finetune.drop_path=0.1"],
        "finetune.drop_path: only the head is trained, without the layers it is for; set 0",
        "finetune.drop_path=0",
    ),
    "intermediate step": (
        "imagenet22k-nano",
        ["intermediate.micro_batch_size=3", "cluster.num_workers=4"],
        "intermediate.micro_batch_size: mixup and cutmix pair images, 3 is odd; 4 would pair up",
        "intermediate.micro_batch_size=4",
    ),
    "probe of nothing": (
        "linear-probe-atto",
        ["pretrain=null", "finetune={duration: 1, global_batch_size: 8, micro_batch_size: 8, "
         "base_lr: 1}"],
        "linear_probe: looks at a pretrained encoder, and pretrain is not set; "
        "linear_probe.weights=FILE would work",
        "linear_probe=null",
    ),
    "neighbours of nothing": (
        "supervised-atto",
        ["knn={}"],
        "knn: looks at a pretrained encoder, and pretrain is not set; knn.weights=FILE would work",
        "knn=null",
    ),
    "two baselines": (
        "imagenet22k-nano",
        ["intermediate.scratch_baseline=true"],
        "intermediate.scratch_baseline: only finetune has a baseline from scratch",
        "intermediate.scratch_baseline=false",
    ),
    "baseline of scratch": (
        "supervised-atto",
        ["finetune.scratch_baseline=true"],
        "finetune.scratch_baseline: without pretrain, finetune is that itself",
        "finetune.scratch_baseline=false",
    ),
    "nothing": (
        "demo",
        ["pretrain=null", "finetune=null"],
        "finetune: neither pretrain nor finetune is set; there is nothing to train",
        "finetune={duration: 1, global_batch_size: 8, micro_batch_size: 4, base_lr: 1}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFLICTS)
def test_a_conflict_is_told_and_mended(case: str) -> None:
    preset, overrides, words, mending = CONFLICTS[case]
    found = problems(preset, *overrides)
    assert words in found
    left = problems(preset, *overrides, mending)
    assert set(left) < set(found)
    assert words not in left


def test_a_warm_up_in_other_units_is_left_to_the_training() -> None:
    assert problems("demo", "pretrain.duration=10 epochs", "pretrain.warmup=9999999 steps") == []


def test_conflicts_of_all_sections_are_told_at_once() -> None:
    groups = [f"{name}.layer_decay_groups=group" for name in ("intermediate", "finetune")]
    found = problems("imagenet22k-tiny", *groups, "pretrain.keep_best=acc", "cluster.zero.stage=0",
                     "cluster.zero.offload_optimizer=cpu", "cluster.num_worker=2")  # fmt: skip
    assert [words.split(": ")[0] for words in found] == [
        "unknown key 'cluster.num_worker'; did you mean 'cluster.num_workers'?",
        "cluster.zero.offload_optimizer",
        "pretrain.keep_best",
        "intermediate.layer_decay_groups",
        "finetune.layer_decay_groups",
    ]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("knn.metric=l2", "unknown key 'knn.metric'; there are knn.k, knn.temperature, "
         "knn.weights, knn.batch_size"),
        ("intermediate.data.sorce=/x", "unknown key 'intermediate.data.sorce'; did you mean "
         "'intermediate.data.source'?"),
        ("cluster.zero.stag=2", "unknown key 'cluster.zero.stag'; did you mean "
         "'cluster.zero.stage'?"),
        ("cluster.zero.stage=4", "cluster.zero.stage: input should be 0, 1, 2 or 3, got 4"),
        ("intermediate.data.write.mode=png", "intermediate.data.write.mode: input should be "
         "'raw', 'jpg', 'smart' or 'proportion', got 'png'"),
    ],
)  # fmt: skip
def test_errors_below_optional_sections_name_the_field(override: str, words: str) -> None:
    preset = "knn-atto" if override.startswith("knn") else "imagenet22k-nano"
    assert problems(preset, override) == [words]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            "{min: 1, mox: 2}",
            [
                "cluster.num_workers.max: has no default and must be given",
                "unknown key 'cluster.num_workers.mox'; did you mean 'cluster.num_workers.max'?",
            ],
        ),
        (
            "{min: 0, max: 2}",
            ["cluster.num_workers.min: input should be greater than 0, got 0"],
        ),
        ("0", ["cluster.num_workers: input should be greater than 0, got 0"]),
    ],
)
def test_a_number_or_two_of_workers(value: str, words: list[str]) -> None:
    assert problems("demo", f"cluster.num_workers={value}") == words
