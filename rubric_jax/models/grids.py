"""Pictures at their own resolution, laid out on the host: grids of cells, windows, positions.

A cell is a square of patches that becomes one feature. A frame is an entry of its group's table,
and its cells come window by window, so that a window is a run of the entry. Windows at the edge
are filled up; here h, w = 3, 3 and windows of 2 x 2 cells:

  0 1 2                                       window 1   window 2   window 3   window 4
  3 4 5     cells in the order of the entry   0 1 3 4    2 - 5 -    6 7 - -    8 - - -
  6 7 8
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from rubric_jax import types


class Grid(NamedTuple):
    """What a family's pictures look like: `Picture.pixels` is [t, h, w, merge * merge, values]."""

    merge: int  # patches on a side of a cell
    values: int  # numbers of a patch: channels x frames x height x width
    window: int = 0  # cells on a side of a window; 0 = no windows


def padded(grid: Grid, cells: int) -> int:
    """The cells of an entry, in whole windows."""
    window = max(grid.window, 1) ** 2
    return -(-cells // window) * window


def order(height: int, width: int, window: int) -> np.ndarray:
    """int [cells], the cell (row by row) at each place of an entry; -1 = filled up."""
    cells = np.arange(height * width).reshape(height, width)
    if not window:
        return cells.reshape(-1)
    cells = np.pad(cells, ((0, -height % window), (0, -width % window)), constant_values=-1)
    cells = cells.reshape(cells.shape[0] // window, window, -1, window)
    return cells.transpose(0, 2, 1, 3).reshape(-1)


def arrange(grid: Grid, tables, images: int, cells: int) -> dict[str, np.ndarray]:
    """`interleaved.Arrangement.arrange`: entries of `cells` cells.

    Returns:
      pixels  float32 [G, I, L, merge * merge, values]
      where   int32 [G, I, L, 2]  row and column of each cell; -1 = nothing there
      extent  int32 [G, I, 2]     rows and columns of the frame
    """
    shape = (len(tables), images, padded(grid, cells))
    pixels = np.zeros((*shape, grid.merge**2, grid.values), np.float32)
    where = np.full((*shape, 2), -1, np.int32)
    extent = np.ones((*shape[:2], 2), np.int32)
    for group, table in enumerate(tables):
        entry = 0
        for picture in table:
            _check(grid, picture)
            frames, height, width = picture.pixels.shape[:3]
            at = order(height, width, grid.window)
            real, own = np.flatnonzero(at >= 0), slice(entry, entry + frames)
            values = picture.pixels.reshape(frames, height * width, *pixels.shape[3:])
            pixels[group, own, real] = values[:, at[real]].swapaxes(0, 1)
            where[group, own, real] = np.stack(divmod(at[real], width), axis=-1)[:, None]
            extent[group, own] = height, width
            entry += frames
    return {"pixels": pixels, "where": where, "extent": extent}


def reads(grid: Grid, picture: types.Picture, first: int, images: int, cells: int) -> np.ndarray:
    """`interleaved.Arrangement.reads`: placeholders go through a picture row by row."""
    frames, height, width = picture.pixels.shape[:3]
    at = order(height, width, grid.window)
    places = np.flatnonzero(at >= 0)
    places = places[np.argsort(at[places])]
    entries = first + np.arange(frames)
    return (entries[:, None] * padded(grid, cells) + places).reshape(-1)


def positions(pace: float, here: np.ndarray, shown: list[types.Picture]) -> tuple[np.ndarray, int]:
    """`interleaved.Arrangement.positions` with three axes: time, row and column.

    A text token is one further than what is before it on every axis. A picture's cells start there
    and count on their own; text goes on behind the largest position of the picture:

      text  <i> <i> <i> <i> <i> <i>  text        a picture of 2 x 3 cells behind one token
      0     1   1   1   1   1   1    4     time
      0     1   1   1   2   2   2    4     row
      0     1   2   3   1   2   3    4     column

    Entries of a video are `pace` positions a second apart in time. With 0 there is text between
    them that tells the time, and each counts as a picture.
    """
    found = np.empty((len(here), 3), np.int32)
    places = np.flatnonzero(here)
    following = done = used = 0  # the next position; tokens and placeholders so far
    for times, height, width in _parts(pace, shown):
        shape = (len(times), height, width)
        count, first = math.prod(shape), int(places[used])
        found[done:first] = (following + np.arange(first - done))[:, None]
        following += first - done
        own = np.indices(shape).reshape(3, -1).T
        own[:, 0] = times[own[:, 0]]
        found[first : first + count] = following + own
        following += int(own.max()) + 1
        done, used = first + count, used + count
    found[done:] = (following + np.arange(len(here) - done))[:, None]
    return found, done - following


def _parts(pace: float, shown: list[types.Picture]) -> Iterator[tuple[np.ndarray, int, int]]:
    """(time of each entry, rows, columns) of what placeholders stand for without a gap."""
    for picture in shown:
        entries, height, width = picture.pixels.shape[:3]
        if pace:
            yield (np.arange(entries) * (pace * picture.interval)).astype(int), height, width
        else:
            yield from [(np.zeros(1, int), height, width)] * entries


def _check(grid: Grid, picture: types.Picture) -> None:
    wanted = (grid.merge**2, grid.values)
    if picture.pixels.ndim != 5 or picture.pixels.shape[3:] != wanted:
        raise ValueError(
            f"The image processor gave cells of {picture.pixels.shape[3:]} patches x values, but "
            f"the vision tower reads {wanted}; processor and config.json are from different models."
        )
