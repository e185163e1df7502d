"""What a CUDA graph of the training step (`cluster.cuda_graph`) does not go with."""

from collections.abc import Iterator

from pipelines.config import PipelineConfig, PretrainConfig, TrainConfig

FIXED_SHAPES = "gather"
"""The one backend whose shapes are those of every batch."""


def find_graph_conflicts(config: PipelineConfig) -> Iterator[str]:
    """Each beginning with the dotted name of a field."""
    if not config.cluster.cuda_graph:
        return
    if not config.cluster.use_gpu:
        yield "cluster.cuda_graph: workers are on CPUs; set cluster.use_gpu, or leave it out"
    if config.cluster.zero.stage == 3:
        yield (
            "cluster.cuda_graph: ZeRO's stage 3 gathers parameters during a pass, which a replay "
            "would not do; cluster.zero.stage 1 or 2 would work"
        )
    for name, recipe in config.recipes().items():
        yield from (f"{name}.{problem}" for problem in _of_recipe(recipe))


def _of_recipe(recipe: TrainConfig) -> Iterator[str]:
    if recipe.compile:
        yield "compile: torch.compile and cluster.cuda_graph do not go together; set one of them"
    if recipe.activation_checkpointing:
        yield (
            "activation_checkpointing: it saves the state of random numbers in the midst of a "
            "pass, which cluster.cuda_graph cannot record; leave one of them out"
        )
    if isinstance(recipe, PretrainConfig) and recipe.backend != FIXED_SHAPES:
        yield (
            f"backend: shapes of {recipe.backend} vary, which cluster.cuda_graph cannot record; "
            f"{FIXED_SHAPES} would work"
        )
