"""What fields of a configuration say against each other, with values that would go together."""

from collections.abc import Iterator

from cluster.batch_layout import BatchLayout
from cluster.engine.zero_config import find_problems
from convnextv2.sizes import nearest_multiples
from pipelines.config import (
    ClusterConfig,
    FinetuneConfig,
    IntermediateConfig,
    ModelConfig,
    PipelineConfig,
    TrainConfig,
)
from pipelines.config.graph_checks import find_graph_conflicts
from pipelines.config.recipe_checks import changes_of_colours, find_recipe_conflicts


def find_conflicts(config: PipelineConfig) -> list[str]:
    """All of them, each beginning with the dotted name of a field."""
    cluster = config.cluster
    problems = [*_geometry(config.model), *_zero(config)]
    if cluster.least_workers > cluster.most_workers:
        wrong = f"min {cluster.least_workers} is more than max {cluster.most_workers}"
        return [*problems, f"cluster.num_workers: {wrong}"]
    for name, train in config.recipes().items():
        problems += (f"{name}: {problem}" for problem in _group_sizes(train, cluster))
        data = train.data if isinstance(train, IntermediateConfig) else config.data
        found = find_recipe_conflicts(train, data, config.model, cluster.most_workers)
        if train.compile and cluster.zero.stage == 3:
            found.append(
                "compile: ZeRO stage 3 fetches parameters layer by layer, which one compiled graph "
                "leaves no room for; cluster.zero.stage 0, 1 or 2 would work, or compile=false"
            )
        if train.spike_factor is not None and not cluster.max_failures:
            found.append(
                "spike_factor: a spike ends the group of workers and a new one goes on, which "
                "cluster.max_failures=0 forbids; 1 or more would work, or spike_factor=null"
            )
        problems += [f"{name}.{problem}" for problem in found]
    return [*problems, *find_graph_conflicts(config), *_stages(config), *_pixels(config)]


def _group_sizes(train: TrainConfig, cluster: ClusterConfig) -> Iterator[str]:
    """Numbers of workers that cannot share a global batch."""
    least, most = cluster.least_workers, cluster.most_workers
    sizes = cluster.sizes_for(train)
    if sizes and {sizes[0], sizes[-1]} == {least, most}:
        return
    try:
        for workers in (least, most):
            BatchLayout(train.global_batch_size, train.micro_batch_size, workers)
    except ValueError as error:
        among = f"; of {least} to {most} workers, {_listed(sizes)} would" if sizes else ""
        yield f"{error}{among}"


def _listed(sizes: list[int]) -> str:
    return " or ".join(map(str, sizes))


def _zero(config: PipelineConfig) -> list[str]:
    """Settings of ZeRO against each other, and against the precision of every recipe."""
    cluster = config.cluster
    problems = [
        f"cluster.zero.{problem}"
        for precision in {recipe.dtype: None for recipe in config.recipes().values()}
        for problem in find_problems(
            cluster.zero,
            use_gpu=cluster.use_gpu,
            precision=precision,
            world_size=cluster.most_workers,
        )
    ]
    return list(dict.fromkeys(problems))


def _stages(config: PipelineConfig) -> Iterator[str]:
    """Sections that make no sense beside, or without, each other."""
    if config.pretrain is None:
        for name in ("linear_probe", "knn"):
            section = getattr(config, name)
            if section is not None and section.weights is None:
                yield (
                    f"{name}: looks at a pretrained encoder, and pretrain is not set; "
                    f"{name}.weights=FILE would work"
                )
        if config.intermediate is None:
            if config.finetune is None and config.linear_probe is None and config.knn is None:
                yield "finetune: neither pretrain nor finetune is set; there is nothing to train"
            elif (train := config.finetune) and train.scratch_baseline and train.weights is None:
                yield "finetune.scratch_baseline: without pretrain, finetune is that itself"
    if config.linear_probe is not None and config.linear_probe.trainable != "head":
        yield "linear_probe.trainable: a probe trains the head alone; set head, or use finetune"
    for name, recipe in config.recipes().items():
        if name != "finetune" and isinstance(recipe, FinetuneConfig) and recipe.scratch_baseline:
            yield f"{name}.scratch_baseline: only finetune has a baseline from scratch"
    yield from _two_starts(config)


def _two_starts(config: PipelineConfig) -> Iterator[str]:
    """Weights of a stage that gets others from the stage before it."""
    for name, section in config.sections().items():
        after_intermediate = name == "finetune" and config.intermediate is not None
        earlier = "intermediate" if after_intermediate else "pretrain"
        if name == earlier or getattr(section, "weights", None) is None:
            continue
        if getattr(config, earlier) is None:
            continue
        yield (
            f"{name}.weights: it starts from what {earlier} trains already; set {earlier}=null, "
            f"or give them to {earlier}.weights"
        )


def _pixels(config: PipelineConfig) -> Iterator[str]:
    """What is for RGB of 8 bits, where images are something else."""
    channels = config.model.in_channels
    collections = {"data": config.data}
    if config.intermediate is not None:
        collections["intermediate.data"] = config.intermediate.data
    for prefix, data in collections.items():
        if (channels, data.write.bits or 8) != (3, 8):
            images = f"model.in_channels is {channels}" if channels != 3 else "write.bits is 16"
            yield from find_colour_conflicts(config, prefix, images)


def find_colour_conflicts(config: PipelineConfig, prefix: str, images: str) -> Iterator[str]:
    """What is for RGB of 8 bits among the settings of a collection and of those who train on it.

    `prefix` is its section; `images` says why its images are something else.
    """
    data = config.data
    readers = {
        name: train
        for name, train in config.recipes().items()
        if isinstance(train, IntermediateConfig) == (prefix != "data")
    }
    if prefix != "data":
        assert config.intermediate is not None
        data = config.intermediate.data
    if data.write.mode in ("smart", "proportion"):
        yield (
            f"{prefix}.write.mode: {data.write.mode} makes JPEGs of RGB of 8 bits, and "
            f"{images}; raw would work"
        )
    for name, train in readers.items():
        yield from (f"{name}.{problem}" for problem in changes_of_colours(train, images))


def _geometry(model: ModelConfig) -> list[str]:
    """What is wrong with the geometry; a patch that would work fits the image, too."""
    stride, patch, image = 8 * model.stem_stride, model.patch_size, model.image_size
    if patch % stride:
        wrong = (
            f"model.patch_size: {patch} is no multiple of the total stride {stride} "
            "(8 x stem_stride)"
        )
        fitting = [size for size in range(stride, image + 1, stride) if image % size == 0]
        if fitting:
            close = sorted(sorted(fitting, key=lambda size: abs(size - patch))[:2])
            return [f"{wrong}; {' or '.join(map(str, close))} would work"]
        below = max(stride, patch // stride * stride)
        return [
            f"{wrong}; {below} would work with model.image_size {nearest_multiples(image, below)}"
        ]
    if image % patch:
        return [
            f"model.image_size: {image} is no multiple of model.patch_size {patch}; "
            f"{nearest_multiples(image, patch)} would work"
        ]
    return []
