"""How much memory the activations of a training step take, by formula: nothing is built or run.

The formulas add up what PyTorch keeps for the backward pass, operation by operation;
`tests/convnextv2/test_memory.py` compares them with the tensors that PyTorch really keeps.

Legend: C channels of a stage; E bytes per activation value; sites, the places of a feature map
(with `gather`, of the visible patches alone).
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
    """Activation memory of one worker at the peak of a step, in bytes.

    `kept` is held until the backward pass. `passing` is held only for a moment: the images, what
    the loss is computed from and, with activation checkpointing, the block that is being
    recomputed.
    """

    kept: float
    passing: float

    @property
    def total(self) -> float:
        return self.kept + self.passing


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step, as far as its activation memory depends on it.

    Attributes:
        size: A name in `convnextv2.sizes.SIZES`.
        image_size: Side of the images in pixels.
        mask_ratio: Share of patches that FCMAE (with its ConvNeXt decoder) masks; None is the dense
            classifier.
        backend: How FCMAE's encoder handles masked patches.
        kernels: "triton" on GPUs, "native" on CPUs in fp32, "plain" PyTorch.
        value_bytes: E: 2 in bf16, 4 in fp32.
        checkpoint_stages: Stages whose blocks are recomputed in the backward pass.
        patch_size: Side of a patch in pixels.
        stem_stride: Stride of the stem in pixels.
        in_channels: Channels of the images.
        decoder_dim: Channels of the decoder.
        decoder_depth: Blocks of the decoder.
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
        """Sites of an image in a stage: those that are computed, and all of them."""
        everything = (self.image_size // (self.stem_stride << stage)) ** 2
        if self.mask_ratio is None or self.backend == "masked-dense":
            return everything, everything
        return everything * self.visible / self.patches, everything


def activation_bytes(step: Step, batch: int) -> ActivationBytes:
    """Activation memory for a micro batch of `batch` images."""
    kept, again = _encoder(step)
    pixels = step.in_channels * step.image_size**2
    # The images as bytes, and normalised.
    passing = (1 + step.value_bytes) * pixels + again
    if step.mask_ratio is not None:
        kept += _decoder(step)
        kept_by_loss, passing_loss = _loss(step)
        kept, passing = kept + kept_by_loss, passing + passing_loss
    return ActivationBytes(batch * kept, batch * passing)


def parameter_count(step: Step, num_classes: int = 1000) -> int:
    """Number of parameters of FCMAE or, without a mask ratio, of the classifier."""
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
    # Depthwise convolution and its bias, LayerNorm, two linear layers, GRN.
    return 50 * dim + 2 * dim + 8 * dim**2 + 5 * dim + 8 * dim


def _encoder(step: Step) -> tuple[float, float]:
    """Bytes per image: what is kept, and the largest block that is recomputed."""
    dims, e = step.shape.dims, step.value_bytes
    kept, again = 0.0, 0.0
    windows = step.in_channels * step.stem_stride**2
    for stage, (depth, dim) in enumerate(zip(step.shape.depths, dims, strict=True)):
        sites, everything = step.sites(stage)
        # The windows of the stem or of the 2x2 convolution, which are rows of a matrix product.
        kept += e * sites * windows
        # LayerNorm after the stem, or before the next stage's convolution.
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
    """Bytes per image of a block: depthwise, LayerNorm, C to 4C, GELU and GRN, 4C to C."""
    e = step.value_bytes
    convolved = e * sites * dim
    if step.kernels == "plain" and sites < everything:
        # Visible patches are scattered on a canvas of zeros, by their positions.
        convolved = e * everything * dim + INT64 * sites
    narrow = convolved + _norm(step, sites, dim) + e * sites * dim
    return narrow + sum(_gelu_grn(step, sites, 4 * dim, masked=masked))


def _norm(step: Step, sites: float, dim: int) -> float:
    """LayerNorm's input and, except with Triton, the mean and deviation of every site."""
    return step.value_bytes * sites * dim + (0 if step.kernels == "triton" else 2 * FP32 * sites)


def _gelu_grn(step: Step, sites: float, wide: int, *, masked: bool) -> Iterator[float]:
    """GELU, GRN and the next linear layer; our kernels keep the input and recompute the rest."""
    e, plain = step.value_bytes, step.kernels == "plain" or masked
    yield e * sites * wide
    # Norms and scales of an image's channels; plain PyTorch keeps one more such tensor.
    yield (3 if plain else 2) * FP32 * wide
    if plain:
        # GELU's output, its copy in fp32 for the norm, and GRN's output.
        yield 2 * e * sites * wide
        yield FP32 * sites * wide if masked or e < FP32 else 0.0


def _decoder(step: Step) -> float:
    """The projection, the blocks on the whole grid, and the input of the prediction."""
    e, (sites, everything) = step.value_bytes, step.sites(3)
    hidden = everything * (step.patches - step.visible) / step.patches
    blocks = step.decoder_depth * _block(
        step, everything, everything, step.decoder_dim, masked=False
    )
    around = 49 * FP32 * step.visible if step.kernels == "triton" else 0.0
    projected = e * sites * step.shape.dims[-1]
    return projected + blocks + e * hidden * step.decoder_dim + around


def _loss(step: Step) -> tuple[float, float]:
    """Prediction and target of the masked patches, in fp32 and as they were computed.

    The squared errors are kept too: PyTorch's mean squared error stores its sum in their memory.
    """
    hidden = (step.patches - step.visible) * step.patch_size**2 * step.in_channels
    return 3 * FP32 * hidden, 2 * step.value_bytes * hidden
