"""SplitMix64's finaliser in plain Python integers: what `convnextv2.randomness` must equal."""

from functools import reduce

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
