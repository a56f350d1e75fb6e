"""From the bytes of a file to the shards of a parameter, without an array of the whole between.

A tensor is read in blocks of rows; each block goes to every shard that has a part of it, turned
into the parameter's order of axes on the way:

  tensor [H*h, D]  rows 0 ..   block [k, D]  ->  shard of device 0: [L, D, H/2, h] of layer 3
                               rows h*H/2 .. ->  shard of device 1
"""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

_BLOCK = 4 * 2**20  # bytes read at a time by each thread
_ROWS = 8  # turned at a time: a few sequential streams, which measured fastest
_ALIGNMENT = 64  # bytes; then a CPU device takes the memory over as it is

Index = tuple[tuple[int, int], ...]  # (start, stop) per axis


class Part(NamedTuple):
    """What a shard takes of a tensor."""

    where: Index  # in the tensor
    target: np.ndarray  # of that shape: the shard's own memory, seen in the tensor's axes


def normal(index: Sequence[slice], shape: Sequence[int]) -> Index:
    """A shard's index, as shardings give it, with numbers for the ends."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def empty(shape: Sequence[int], dtype) -> np.ndarray:
    """Memory for a shard, not yet written."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    first = -raw.ctypes.data % _ALIGNMENT
    return raw[first : first + size].view(dtype).reshape(shape)


def parts(
    shape: tuple[int, ...], axes: tuple[int, ...], full: tuple[int, ...], targets: Mapping
) -> list[Part] | None:
    """What each shard takes of a tensor.

    Args:
      shape: of the tensor. axes: the parameter is transpose(tensor, axes), reshaped to `full`.
      targets: {index of a shard in the parameter: its memory}.

    Returns None if the parameter's axes do not just split those of the tensor, or one is cut inside
    of such a split: then no part is a block of the tensor.
    """
    groups = _groups([shape[axis] for axis in axes], full)
    if groups is None:
        return None
    found = []
    for index, target in targets.items():
        cuts, turned = [], []  # of the transposed tensor; its shape on this shard
        for first, last in groups:
            inner = math.prod(full[first + 1 : last])
            if any(index[i] != (0, full[i]) for i in range(first + 1, last)):
                return None
            start, stop = index[first] if last > first else (0, 1)
            cuts.append((start * inner, stop * inner))
            turned.append((stop - start) * inner)
        back = np.argsort(axes)
        where = tuple(cuts[axis] for axis in back)
        found.append(Part(where, target.reshape(turned).transpose(back)))
    return found


def fill(
    file: pathlib.Path,
    start: int,
    shape: tuple[int, ...],
    dtype: np.dtype,
    given: Sequence[Part],
) -> None:
    """Reads a tensor that lies at byte `start` of a file into its parts.

    Rows that belong to no part are not read. Many threads may do so at once: reading and copying
    let others run.
    """
    rows, width = shape[0], math.prod(shape[1:]) * dtype.itemsize
    step = max(1, _BLOCK // max(width, 1))
    first = min(part.where[0][0] for part in given)
    last = max(part.where[0][1] for part in given)
    buffer = np.empty(min(step, rows) * width, np.uint8)
    with open(file, "rb", buffering=0) as source:
        _announce(source.fileno(), start + first * width, (last - first) * width)
        for low in range(first, last, step):
            high = min(low + step, last)
            here = [p for p in given if p.where[0][0] < high and p.where[0][1] > low]
            if not here:
                continue
            raw = buffer[: (high - low) * width]
            _read(source, raw, start + low * width)
            block = raw.view(dtype).reshape(high - low, *shape[1:])
            for where, target in here:
                top = where[0][0]
                a, b = max(low, top), min(high, where[0][1])
                inside = (slice(a - low, b - low), *(slice(*cut) for cut in where[1:]))
                _copy(target[a - top : b - top], block[inside])


def _groups(turned: Sequence[int], full: Sequence[int]) -> list[tuple[int, int]] | None:
    """Which axes of `full` each of `turned` is split into, as (first, last); None if not so."""
    found, at = [], 0
    for size in turned:
        first, product = at, 1
        while at < len(full) and (product < size or (first == at and full[at] == size)):
            product *= full[at]
            at += 1
        if product != size:
            return None
        found.append((first, at))
    return found if at == len(full) else None


def _copy(target: np.ndarray, block: np.ndarray) -> None:
    """target = block, cast. Of a target whose rows are its last axis a few rows at a time."""
    if block.dtype == target.dtype:  # as integers: NumPy copies those faster than bfloat16
        kind = f"u{block.dtype.itemsize}"
        block, target = block.view(kind), target.view(kind)
    turned = target.ndim > 1 and target.strides[0] < target.strides[-1]
    step = _ROWS if turned else len(target)
    for low in range(0, len(target), step):
        target[low : low + step] = block[low : low + step].astype(target.dtype, copy=False)


def _read(source, raw: np.ndarray, start: int) -> None:
    done = 0
    while done < raw.size:
        count = os.preadv(source.fileno(), [raw[done:]], start + done)
        if not count:
            raise ValueError(f"{source.name} ends early; fetch or copy it again.")
        done += count


def _announce(handle: int, start: int, size: int) -> None:
    """Lets the system fetch what will be read, where it can be told."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, start, size, os.POSIX_FADV_WILLNEED)
