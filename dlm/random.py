"""Stateless random numbers, and the one place where the precision of categorical draws is decided.

A `Key` holds a seed, the global index of every sequence of a batch and a path of folded words
(purpose, step, ...). Every uniform it gives is a function of (seed, path, row, index) and of
nothing else: neither the device, the rank, the batch a row sits in, nor what was drawn before.
Numbers come from SplitMix64 in int64 tensor arithmetic (which wraps): a counter, hashed. They carry
53 bits, so the tail of a categorical law is not cut off as it is by float32 Gumbel noise.

Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators" (SplitMix64);
Zheng et al. 2024, arXiv:2409.02908 (what 24-bit noise does to a sampler).
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, the increment of SplitMix64
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31
_MASK = (1 << 64) - 1
_BLOCK = 256  # entries summed in one go by `sample_categorical`
_CACHED = 2**20  # entries it holds at a time on a CPU: a second-level cache
_AT_ONCE = 2**28  # and on a GPU: a gigabyte in float32


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


def _hash_int(word: int) -> int:
    for shift, factor in _MIX:
        word = ((word ^ (word >> shift)) * factor) & _MASK
    return word ^ (word >> _LAST_SHIFT)


def _shift(words: Tensor, bits: int) -> Tensor:
    return (words >> bits) & ((1 << (64 - bits)) - 1)  # a logical shift: int64 >> keeps the sign


def _hash(words: Tensor) -> Tensor:
    for shift, factor in _MIX:
        words = (words ^ _shift(words, shift)) * _signed(factor)
    return words ^ _shift(words, _LAST_SHIFT)


@dataclass(frozen=True, eq=False)
class Key:
    """Source of uniforms for the rows of a batch.

    Attributes:
        seed: any integer.
        rows: int64 (B,), the GLOBAL index of each sequence: never a rank, never a place in the
            batch. path: what was folded in so far; use `fold`.
    """

    seed: int
    rows: Tensor
    path: int = 0

    def fold(self, *data: int | str) -> Key:
        """A key for a purpose, a step, ...: independent of this one and of every other fold."""
        path = self.path
        for item in data:
            word = zlib.crc32(item.encode()) | 1 << 40 if isinstance(item, str) else item & _MASK
            path = _hash_int((path + _GAMMA) & _MASK ^ _hash_int((word + _GAMMA) & _MASK))
        return Key(self.seed, self.rows, path)

    def uniform(self, *tail: int) -> Tensor:
        """Uniforms in [0, 1), float64, shape (B, *tail), on the device of `rows`."""
        base = _hash_int((_hash_int((self.seed + _GAMMA) & _MASK) + self.path) & _MASK)
        streams = _hash(_hash(self.rows.to(torch.int64) * _signed(_GAMMA)) + _signed(base))
        count = math.prod(tail)
        index = torch.arange(1, count + 1, device=self.rows.device) * _signed(_GAMMA)
        words = _hash(streams[:, None] + index)
        return (_shift(words, 11).to(torch.float64) * 2.0**-53).reshape(-1, *tail)

    def __getitem__(self, where: Tensor | slice) -> Key:
        """The key of some of the rows: leaving rows out changes no number of the others."""
        return Key(self.seed, self.rows[where], self.path)


def sample_categorical(log_probs: Tensor, u: Tensor) -> Tensor:
    """Draw from categorical laws by inverse transform, one uniform a row.

    Two levels: float64 sums over blocks of 256 entries, then the cumulative sum inside the block
    that is hit. Entries of zero mass are never drawn.

    Args:
        log_probs: log-weights, shape (..., K), not necessarily normalised; -inf is no mass.
        u: float64 uniforms in [0, 1), shape (...).

    Returns:
        Indices, int64, shape (...).
    """
    size = log_probs.shape[-1]
    rows, uniforms = log_probs.detach().reshape(-1, size), u.reshape(-1, 1).to(torch.float64)
    count = max(1, (_CACHED if rows.device.type == "cpu" else _AT_ONCE) // size)
    buffer = torch.empty_like(rows[:count])  # one that stays in the cache, for all chunks
    parts = [
        _draw(chunk, part, buffer[: len(chunk)])
        for chunk, part in zip(rows.split(count), uniforms.split(count), strict=True)
    ]
    return torch.cat(parts).reshape(log_probs.shape[:-1])


def _draw(log_probs: Tensor, u: Tensor, weights: Tensor) -> Tensor:
    """Draws of rows (N, K) with uniforms (N, 1); `weights`, (N, K), is overwritten."""
    size = log_probs.shape[-1]
    torch.sub(log_probs, log_probs.amax(-1, keepdim=True), out=weights).exp_()
    whole = size // _BLOCK * _BLOCK
    sums = weights[:, :whole].unflatten(-1, (-1, _BLOCK)).sum(-1, dtype=torch.float64)
    rest = weights[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)
    cumulative = torch.cat([sums, rest], -1).cumsum(-1)
    target = u * cumulative[:, -1:]
    block = _first_above(cumulative, target)
    before = torch.where(block > 0, cumulative.gather(-1, (block - 1).clamp_min(0)), 0.0)
    place = block * _BLOCK + torch.arange(_BLOCK, device=u.device)
    inside = weights.gather(-1, place.clamp(max=size - 1)).to(torch.float64) * (place < size)
    return (block * _BLOCK + _first_above(inside.cumsum(-1), target - before)).squeeze(-1)


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """First index whose cumulative weight exceeds `target`, or the last one with mass."""
    index = (cumulative <= target).sum(-1, keepdim=True)
    last = (cumulative < cumulative[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum(index, last)
