"""How much memory the activations of a training step take, by formula: nothing is built or run.

What PyTorch keeps for the backward pass, operation by operation; `tests/convnextv2/test_memory.py`
counts the tensors that it really keeps.

Legend: C channels of a stage, sites: places of a feature map, of the visible patches alone with
`gather`; E bytes of an activation.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from convnextv2.sizes import Size, size_of, visible_count

Kernels = Literal["triton", "native", "plain"]
FP32 = 4
INT64 = 8


class ActivationBytes(NamedTuple):
    """Of one worker at the step's peak.

    `kept` waits for the backward pass; `passing` is there for a moment: the images, what the loss
    is made of, and with activation checkpointing the block that is computed again.
    """

    kept: float
    passing: float

    @property
    def total(self) -> float:
        return self.kept + self.passing


@dataclass(frozen=True, kw_only=True)
class Step:
    """A forward pass whose backward pass is to follow.

    Attributes:
        size: Of `convnextv2.sizes.SIZES`.
        image_size: Side in pixels.
        mask_ratio: Of FCMAE with its ConvNeXt decoder; None is the dense classifier.
        backend: Of FCMAE.
        kernels: "triton" on GPUs, "native" on CPUs in fp32, "plain" PyTorch.
        value_bytes: E: 2 in bf16, 4 in fp32.
        checkpoint_stages: Stages whose blocks are computed a second time.
        patch_size, stem_stride, in_channels, decoder_dim, decoder_depth: As of the models.
    """

    size: str
    image_size: int = 224
    mask_ratio: float | None = None
    backend: Literal["gather", "masked-dense"] = "gather"
    kernels: Kernels = "triton"
    value_bytes: int = 2
    checkpoint_stages: Collection[int] = ()
    patch_size: int = 32
    stem_stride: int = 4
    in_channels: int = 3
    decoder_dim: int = 512
    decoder_depth: int = 1

    @property
    def shape(self) -> Size:
        return size_of(self.size)

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def visible(self) -> int:
        assert self.mask_ratio is not None
        return visible_count(self.patches, self.mask_ratio)

    def sites(self, stage: int) -> tuple[float, float]:
        """Of an image in a stage: those that are computed, and all."""
        everything = (self.image_size // (self.stem_stride << stage)) ** 2
        if self.mask_ratio is None or self.backend == "masked-dense":
            return everything, everything
        return everything * self.visible / self.patches, everything


def activation_bytes(step: Step, batch: int) -> ActivationBytes:
    """Of a micro batch of so many images."""
    kept, again = _encoder(step)
    pixels = step.in_channels * step.image_size**2
    # The batch as bytes, and normalised.
    passing = (1 + step.value_bytes) * pixels + again
    if step.mask_ratio is not None:
        kept += _decoder(step)
        kept_by_loss, passing_loss = _loss(step)
        kept, passing = kept + kept_by_loss, passing + passing_loss
    return ActivationBytes(batch * kept, batch * passing)


def parameter_count(step: Step, num_classes: int = 1000) -> int:
    """Of FCMAE, or of the classifier where there is no mask ratio."""
    dims, depths, d = step.shape.dims, step.shape.depths, step.decoder_dim
    count = step.in_channels * step.stem_stride**2 * dims[0] + 3 * dims[0]
    count += sum(2 * a + 4 * a * b + b for a, b in pairwise(dims))
    count += sum(n * _block_parameters(dim) for n, dim in zip(depths, dims, strict=True))
    if step.mask_ratio is None:
        return count + 2 * dims[-1] + (dims[-1] + 1) * num_classes
    pixels = (8 * step.stem_stride) ** 2 * step.in_channels
    decoder = dims[-1] * d + 2 * d + step.decoder_depth * _block_parameters(d) + (d + 1) * pixels
    return count + decoder


def _block_parameters(dim: int) -> int:
    # Depthwise and its bias, LayerNorm, two linear layers, GRN.
    return 50 * dim + 2 * dim + 8 * dim**2 + 5 * dim + 8 * dim


def _encoder(step: Step) -> tuple[float, float]:
    """Of an image: what is kept, and the largest block that is computed again."""
    dims, e = step.shape.dims, step.value_bytes
    kept, again = 0.0, 0.0
    windows = step.in_channels * step.stem_stride**2
    for stage, (depth, dim) in enumerate(zip(step.shape.depths, dims, strict=True)):
        sites, everything = step.sites(stage)
        # The stem's or the 2x2 convolution's windows, which are rows of a matrix product.
        kept += e * sites * windows
        # LayerNorm: behind the stem, or before the next stage's convolution.
        kept += _norm(step, sites, dim) if stage == 0 else 0.0
        kept += _norm(step, sites, dim) if stage < len(dims) - 1 else 0.0
        masked = step.mask_ratio is not None and step.backend == "masked-dense"
        block = _block(step, sites, everything, dim, masked=masked)
        if stage in step.checkpoint_stages:
            kept += depth * e * sites * dim
            again = max(again, block)
        else:
            kept += depth * block
        windows = 4 * dim
    return kept, again


def _block(step: Step, sites: float, everything: float, dim: int, *, masked: bool) -> float:
    """Depthwise, LayerNorm, C to 4C, GELU and GRN, 4C to C."""
    e = step.value_bytes
    convolved = e * sites * dim
    if step.kernels == "plain" and sites < everything:
        # Visible patches are laid on a canvas of zeros, by their places.
        convolved = e * everything * dim + INT64 * sites
    narrow = convolved + _norm(step, sites, dim) + e * sites * dim
    return narrow + sum(_gelu_grn(step, sites, 4 * dim, masked=masked))


def _norm(step: Step, sites: float, dim: int) -> float:
    """Its input, and but for Triton's the mean and deviation of every site."""
    return step.value_bytes * sites * dim + (0 if step.kernels == "triton" else 2 * FP32 * sites)


def _gelu_grn(step: Step, sites: float, wide: int, *, masked: bool) -> Iterator[float]:
    """With the linear layer behind: ours keep the input, and compute all else again."""
    e, plain = step.value_bytes, step.kernels == "plain" or masked
    yield e * sites * wide
    # Norms and scales of an image's channels; as PyTorch divides and multiplies them, once more.
    yield (3 if plain else 2) * FP32 * wide
    if plain:
        # GELU, its copy in fp32 whose norm is taken, GRN's output.
        yield 2 * e * sites * wide
        yield FP32 * sites * wide if masked or e < FP32 else 0.0


def _decoder(step: Step) -> float:
    """Projection, the blocks on the whole grid, the prediction's input."""
    e, (sites, everything) = step.value_bytes, step.sites(3)
    hidden = everything * (step.patches - step.visible) / step.patches
    blocks = step.decoder_depth * _block(
        step, everything, everything, step.decoder_dim, masked=False
    )
    around = 49 * FP32 * step.visible if step.kernels == "triton" else 0.0
    projected = e * sites * step.shape.dims[-1]
    return projected + blocks + e * hidden * step.decoder_dim + around


def _loss(step: Step) -> tuple[float, float]:
    """Prediction and target of the masked patches in fp32, and both as they were computed.

    PyTorch's mean squared error leaves its sum in the memory of the squares, which lives as long.
    """
    hidden = (step.patches - step.visible) * step.patch_size**2 * step.in_channels
    return 3 * FP32 * hidden, 2 * step.value_bytes * hidden
