"""Counter-based random numbers: every draw is a pure function of (seed, epoch, sample, draw).

No state is carried from one sample to the next, so that the number of workers, the order of batches
and restarts cannot change a draw. The mixer is SplitMix64's finaliser (Steele et al., OOPSLA 2014).
The functions are plain arithmetic on uint64: Python runs them on NumPy arrays, and
`convnextv2.data` has numba compile them for scalars. This module does not import numba, because
masks are drawn without it.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_ONE = np.uint64(1)
_UNIT = np.float64(1.0 / (1 << 53))

UInt64Array = NDArray[np.uint64]
# Compiled code passes and gets scalars; the annotated results are those for arrays.
UInt64 = np.uint64 | UInt64Array


class Draw(IntEnum):
    """First draw number of each operation; an operation owns the numbers up to the next."""

    CROP = 0
    FLIP = 64
    HOLD_OUT = 128
    COLOR_JITTER = 192
    RAND_AUGMENT = 256
    ERASING = 320
    MIXING = 448
    MASK = 1 << 20


def mix(x: UInt64) -> UInt64Array:
    """Scramble 64-bit integers by a bijection."""
    x = (x ^ (x >> _S30)) * _MIX_1
    x = (x ^ (x >> _S27)) * _MIX_2
    return x ^ (x >> _S31)  # type: ignore[return-value]  # Of an array an array.


def random_bits(seed: UInt64, epoch: UInt64, sample: UInt64, draw: UInt64) -> UInt64Array:
    """64 random bits; the arguments broadcast."""
    x = mix(seed + _GOLDEN)
    x = mix(x ^ (epoch + _GOLDEN))
    x = mix(x ^ (sample + _GOLDEN))
    return mix(x ^ (draw + _GOLDEN))


def stream_bits(key: UInt64, number: UInt64) -> UInt64Array:
    """Output `number` of SplitMix64 started from `key`: cheap bits where one draw needs many."""
    return mix(key + (number + _ONE) * _GOLDEN)


def uniform(seed: UInt64, epoch: UInt64, sample: UInt64, draw: UInt64) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) with 53 random bits; the arguments broadcast."""
    return (random_bits(seed, epoch, sample, draw) >> _S11) * _UNIT


def normal(seed: UInt64, epoch: UInt64, sample: UInt64, draw: UInt64) -> NDArray[np.float64]:
    """Standard normal numbers; each uses the draws `draw` and `draw + 1` (Box and Muller, 1958)."""
    radius = np.sqrt(-2.0 * np.log(1.0 - uniform(seed, epoch, sample, draw)))
    return radius * np.cos(2.0 * np.pi * uniform(seed, epoch, sample, draw + _ONE))


def symmetric_beta(
    seed: UInt64,
    epoch: UInt64,
    sample: UInt64,
    draw: UInt64,
    alpha: float | NDArray[np.float64],
) -> NDArray[np.float64]:
    """Beta(alpha, alpha) numbers for any alpha > 0; each uses the draws `draw` and `draw + 1`.

    Exact, without rejection. If T follows Student's t distribution with 2 alpha degrees of freedom,
    here drawn by Bailey's polar method (1994), then 1/2 + T / (2 sqrt(2 alpha + T^2)) follows
    Beta(alpha, alpha) (Devroye, 1996).
    """
    radius = (1.0 - uniform(seed, epoch, sample, draw)) ** (1.0 / alpha)
    cosine = np.cos(2.0 * np.pi * uniform(seed, epoch, sample, draw + _ONE))
    square = (1.0 - radius) * cosine * cosine
    return 0.5 + np.copysign(0.5 * np.sqrt(square / (radius + square)), cosine)


COMPILABLE = (mix, random_bits, stream_bits, uniform, normal, symmetric_beta)
"""Functions that `convnextv2.data` registers with numba, so that compiled code may call them."""
