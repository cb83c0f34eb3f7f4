"""Randomness that depends on which token is sampled, not on when: restarts and batch composition change nothing."""

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def sample_seed(run_seed: int, group_index: int, sample_index: int) -> int:
    """Return the 63-bit seed of one completion, which is also the seed of its request to an external sampler."""
    key = f"{run_seed}/{group_index}/{sample_index}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def uniforms(seeds: np.ndarray, position: int) -> np.ndarray:
    """Return uniform numbers in [0, 1) for token `position` of the completions with `seeds` (uint64, any shape).

    The generator is SplitMix64 (Steele, Lea, Flood 2014), counter-based, with 53 random bits.
    """
    with np.errstate(over="ignore"):
        z = seeds + _GOLDEN * np.uint64(position + 1)
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
