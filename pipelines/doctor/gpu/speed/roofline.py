"""The roofline of a training step: every operation at the device's peak rates.

The time of an operation is its bytes over the bandwidth, or its arithmetic over the rate of the
unit that does it, whichever is longer. Everything that can be fused counts as fused: GELU and GRN
in two passes each way, LayerNorm with the residual, normalisation with the gather. All of it is in
bf16 and without the optimizer.

Legend: S sites of an image, C channels, K inputs and N outputs of a matrix product.
"""

from dataclasses import dataclass

from convnextv2.sizes import size_of

BYTES = 2
"""Bytes of a bf16 number."""
DECODER, PATCH_PIXELS, IMAGE_PIXELS = 512, 3 * 32 * 32, 3 * 224 * 224
PATCHES, VISIBLE = 49, 19
TAPS = 49
FORWARD_ISSUE, WEIGHT_ISSUE = 2.4, 2.9
"""Instructions per multiply-add of a depthwise kernel that keeps rows of sites in registers."""
ISSUE_SHARE = 0.75
"""The share of the instruction issue slots that a good kernel uses."""


@dataclass(frozen=True)
class Chip:
    """Peak rates: bytes/s, bf16 FLOP/s of matrix products, lane-instructions/s."""

    bandwidth: float
    matrix_rate: float
    lanes: float


class _Step:
    """Sums up the seconds of one image in a batch."""

    def __init__(self, chip: Chip, batch: int) -> None:
        self.chip, self.batch, self.seconds = chip, batch, 0.0

    def move(self, size: float) -> None:
        self.seconds += size / self.chip.bandwidth

    def product(self, sites: float, inputs: int, outputs: int, extra: float = 0.0) -> None:
        size = BYTES * (sites * (inputs + outputs) + inputs * outputs / self.batch) + extra
        flops = 2 * sites * inputs * outputs
        self.seconds += max(flops / self.chip.matrix_rate, size / self.chip.bandwidth)

    def depthwise(self, elements: float) -> None:
        """Forward, gradient of the input, gradient of the weight."""
        rate = ISSUE_SHARE * self.chip.lanes
        for issue, size in ((FORWARD_ISSUE, 4), (FORWARD_ISSUE, 2), (WEIGHT_ISSUE, 4)):
            arithmetic = elements * TAPS * issue / rate
            self.seconds += max(arithmetic, elements * size / self.chip.bandwidth)

    def block(self, sites: float, channels: int) -> None:
        elements = sites * channels
        # Two products forward, the second of which adds the residual; four backward.
        for extra in (0.0, BYTES * elements, 0.0, 0.0, 0.0, 0.0):
            self.product(sites, channels, 4 * channels, extra)
        # GELU + GRN: forward reads twice and writes once, backward reads two tensors twice and
        # writes two.
        self.move((6 + 12) * 4 * elements)
        self.move(2 * elements)  # gradient of a bias
        self.depthwise(elements)
        self.move((4 + 6) * elements)  # LayerNorm

    def downsample(self, sites: float, inputs: int, outputs: int) -> None:
        self.move(8 * sites * inputs)  # windows as rows, there and back
        for _ in range(3):
            self.product(sites, inputs, outputs)


def images_per_second(size: str, chip: Chip, batch: int, *, dense: bool) -> float:
    """The roofline of a 224 px training step: FCMAE at mask ratio 0.6, or the `dense` classifier.

    It counts forward and backward of `batch` images, which share the reading of the weights.
    """
    chosen = size_of(size)
    step = _Step(chip, batch)
    patches = PATCHES if dense else VISIBLE
    step.move(IMAGE_PIXELS + (0 if dense else 4 * PATCH_PIXELS * patches))
    step.downsample(64 * patches, 48, chosen.dims[0])
    step.move(14 * 64 * patches * chosen.dims[0])  # the stem's LayerNorm
    for stage, (depth, channels) in enumerate(zip(chosen.depths, chosen.dims, strict=True)):
        sites = patches * (64 >> 2 * stage)
        if stage:
            before = 4 * chosen.dims[stage - 1]
            step.move(14 * sites * before)
            step.downsample(sites, before, channels)
        for _ in range(depth):
            step.block(sites, channels)
    if not dense:
        _decode(step, chosen.dims[-1])
    return 1 / step.seconds


def _decode(step: _Step, width: int) -> None:
    hidden = PATCHES - VISIBLE
    for _ in range(3):
        step.product(VISIBLE, width, DECODER)
        step.product(hidden, DECODER, PATCH_PIXELS)
    step.move(12 * PATCHES * DECODER)  # laying sites and tokens out
    step.block(PATCHES, DECODER)
    step.move(20 * hidden * PATCH_PIXELS)  # targets and the loss, in fp32
