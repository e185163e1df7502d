"""SplitMix64's finaliser in plain Python integers: what `convnextv2.randomness` must equal.

And torchvision's RandomResizedCrop over those numbers: what a random view must be.
"""

from functools import reduce

from convnextv2.data.loading.views import RandomView

WORD = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def uniform(seed: int, epoch: int, sample: int, draw: int) -> float:
    """53 bits of the chain over the four counters, in [0, 1)."""
    state = reduce(
        lambda x, counter: mix(x ^ ((counter + GOLDEN) & WORD)),
        (epoch, sample, draw),
        mix((seed + GOLDEN) & WORD),
    )
    return (state >> 11) * 2.0**-53


def random_crop(
    view: RandomView, seed: int, epoch: int, sample: int, height: int, width: int
) -> tuple[int, int, int, int, bool]:
    """Top, left, height, width and whether it is mirrored."""
    flip = uniform(seed, epoch, sample, 64) < view.flip
    (small, large), (narrow, wide) = view.scale, view.ratio
    for attempt in range(10):
        u = [uniform(seed, epoch, sample, 4 * attempt + draw) for draw in range(4)]
        area = height * width * (small + u[0] * (large - small))
        ratio = narrow * (wide / narrow) ** u[1]
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if w <= width and h <= height:
            return int(u[2] * (height - h + 1)), int(u[3] * (width - w + 1)), h, w, flip
    w, h = min(width, round(height * wide)), min(height, round(width / narrow))
    return (height - h) // 2, (width - w) // 2, h, w, flip
