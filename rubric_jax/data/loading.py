"""Records to batches, with Grain.

  source = loading.open(prepared)
  plan = loading.plan(source, batch_size=8, groups=2)
  for batch, rows in loading.batches(source, plan, vlm.media, groups=2):   # step 0, 1, 2, ...

A batch is a function of (plan, step): there is no other state, so a run continues at a step by
asking for `start=step`, whatever the number of workers. `batches` ends only at `stop`.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags

from rubric_jax import types
from rubric_jax.data import images, planning, preparing, records
from rubric_jax.data import references as references_lib
from rubric_jax.data.corruptions import drawn

Plan, Shape, plan = planning.Plan, planning.Shape, planning.plan

# (prompts int32 [B, M, P], per group its pictures, per row and context indices into its group's
# pictures, entries I per group, cells of an entry) -> the family's media
Media = Callable[[np.ndarray, list[list[types.Picture]], list[list[list[int]]], int, int], Mapping]


class Example(NamedTuple):
    """One row, ragged."""

    row: int  # position in the prepared data
    number: int  # line or row of the source
    id: str
    prompts: tuple[np.ndarray, ...]  # M x int32 [P_m]
    responses: tuple[np.ndarray, ...]  # N x int32 [T_n]
    images: tuple[tuple[int, ...], ...]  # per context the numbers of its images
    spans: Mapping[str, tuple[np.ndarray, ...]]  # name -> N x float32 [T_n], as types.Batch.spans
    rewards: np.ndarray  # float32 [N, A]; 0 where nothing is known
    has_rewards: bool
    preference: np.ndarray  # float32 [A], the weights that the prompts state; [0] if none
    axis: int
    weight: float
    margin: float
    keys: tuple[str, ...]  # N content keys


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Random access to prepared rows and images. Picklable; files open on first use."""

    prepared: preparing.Prepared
    only: int | None = None  # this context alone; None = all of the layout

    def __getstate__(self) -> dict[str, Any]:
        return {"prepared": self.prepared, "only": self.only}  # open files stay behind

    @property
    def index(self) -> dict[str, np.ndarray]:
        """Lengths, ids and keys of all rows; see preparing.Prepared.index."""
        return self.prepared.index

    def __len__(self) -> int:
        return len(self.prepared)

    def __getitem__(self, i: int) -> Example:
        record = self._rows[int(i)]
        if record["row"] != i:
            raise ValueError(
                f"Row {i} of {self.prepared.directory!r} holds row {record['row']}: the records "
                "are damaged. Delete the directory and prepare the data again."
            )
        kept = slice(None) if self.only is None else slice(self.only, self.only + 1)
        return Example(
            row=int(i),
            number=record["number"],
            id=record["id"].decode(),
            prompts=_split(record["prompts"], record["prompt_lengths"])[kept],
            responses=_split(record["responses"], record["response_lengths"]),
            images=tuple(
                tuple(map(int, part)) for part in _split(record["images"], record["image_counts"])
            )[kept],
            spans=self._spans(record),
            rewards=np.asarray(record["rewards"], np.float32).reshape(
                len(self.prepared.layout.branches), len(self.prepared.axes)
            ),
            has_rewards=bool(record["has_rewards"]),
            preference=np.asarray(record["preference"], np.float32),
            axis=record["axis"],
            weight=record["weight"],
            margin=record["margin"],
            keys=tuple(key.decode() for key in record["keys"]),
        )

    def _spans(self, record) -> dict[str, tuple[np.ndarray, ...]]:
        if not len(record["span_names"]):
            return {}
        names = list(self.prepared.counts.spans)
        parts = np.split(np.asarray(record["span_weights"], np.float32), len(record["span_names"]))
        ends = np.cumsum(record["response_lengths"])[:-1]
        return {
            names[number]: tuple(np.split(part, ends))
            for number, part in zip(record["span_names"], parts, strict=True)
        }

    def image(self, number: int):
        """A stored image, decoded (PIL)."""
        return images.decode(self._images[int(number)]["data"])

    def picture(self, number: int) -> types.Picture:
        """A stored image as the model sees it."""
        return self.prepared.processor.picture(self.image(number))

    @functools.cached_property
    def _rows(self):
        return records.read(self.prepared.directory, "rows")

    @functools.cached_property
    def _images(self):
        return records.read(self.prepared.directory, "images")


def open(prepared: preparing.Prepared) -> Source:
    return Source(prepared)


def batches(
    source: Source,
    plan: planning.Plan,
    media: Media,
    *,
    groups: int | None = None,
    process: int = 0,
    processes: int = 1,
    start: int = 0,
    stop: int | None = None,
    references: references_lib.References | None = None,
    spans: Sequence[str] = (),
    workers: int = 0,
    prefetch: int = 2,
) -> grain.DatasetIterator:
    """Batches of steps `start`, `start + 1`, ...: (types.Batch of numpy arrays, rows int64 [b]).

    Args:
      source, plan: the data, and which rows each step reads (the plan of all processes).
      media: the model family's function that makes Batch.media.
      groups: image groups over all processes; those of the plan.
      process, processes: this process owns a contiguous block of each batch: b = B / processes
        rows and groups / processes groups.
      stop: the step before which to end; None = never.
      references: fills Batch.ref_logps; without it the field is None.
      spans: names of the spans that fill Batch.spans; without any the field is None.
      workers: loader processes; 0 = threads of this one.
      prefetch: batches ready ahead (per worker).

    Returns:
      a Grain iterator, with `get_state` and `set_state`. `rows` is -1 for padding.

    Raises:
      ValueError: the batch or its groups do not split over the processes; while iterating, a
        reference that is not in the store.
    """
    if groups not in (None, plan.groups):
        raise ValueError(f"The plan was made for {plan.groups} image groups, not {groups}.")
    if plan.groups % processes or plan.batch_size % processes:
        raise ValueError(
            f"{plan.batch_size} rows in {plan.groups} groups do not split over {processes} "
            "processes; make config.train.batch_size and the data shards multiples of them."
        )
    steps = _Steps(source, plan, media, process, processes, references, tuple(spans), start, stop)
    threads = max(1, min(prefetch, 4))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, 1))
    dataset = grain.MapDataset.source(steps).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain's workers read flags
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=max(prefetch, 1)
            )
        )
    return iter(dataset)


@dataclasses.dataclass(frozen=True, eq=False)
class _Steps:
    """The batches of a plan as a random-access source: item i is step start + i."""

    source: Source
    plan: planning.Plan
    media: Media
    process: int
    processes: int
    references: references_lib.References | None
    spans: tuple[str, ...]
    start: int
    stop: int | None

    def __len__(self) -> int:
        return (sys.maxsize // 2 if self.stop is None else self.stop) - self.start

    def __getitem__(self, i: int) -> tuple[types.Batch, np.ndarray]:
        shape, rows = self.plan(self.start + int(i))
        rows = np.split(rows, self.processes)[self.process]
        examples = [None if row < 0 else self.source[row] for row in rows]
        groups = self.plan.groups // self.processes
        made = collate(
            self.source,
            examples,
            shape,
            groups,
            self.media,
            references=self.references,
            spans=self.spans,
        )
        return made, rows


def collate(
    source: Source,
    examples: list[Example | None],
    shape: planning.Shape,
    groups: int,
    media: Media,
    *,
    references: references_lib.References | None = None,
    spans: Sequence[str] = (),
) -> types.Batch:
    """Pads examples to a shape; None is a padding row, all zeros. Images are shared in a group."""
    layout, axes = source.prepared.layout, source.prepared.axes
    size, n = len(examples), len(layout.branches)
    m = len(layout.contexts) if source.only is None else 1
    prompts = np.zeros((size, m, shape.prompt), np.int32)
    prompt_lengths = np.zeros((size, m), np.int32)
    responses = np.zeros((size, n, shape.response), np.int32)
    mask = np.zeros((size, n, shape.response), np.float32)
    rewards = np.zeros((size, n, len(axes)), np.float32)
    weight, margin = np.zeros(size, np.float32), np.zeros(size, np.float32)
    axis = np.zeros(size, np.int32)
    stated = source.prepared.counts.copies > 0
    preference = np.zeros((size, len(axes)), np.float32) if stated else None
    for b, example in enumerate(examples):
        if example is None:
            continue
        for j, ids in enumerate(example.prompts):
            prompts[b, j, : len(ids)], prompt_lengths[b, j] = ids, len(ids)
        for j, ids in enumerate(example.responses):
            responses[b, j, : len(ids)], mask[b, j, : len(ids)] = ids, 1.0
        rewards[b], axis[b] = example.rewards, example.axis
        weight[b], margin[b] = example.weight, example.margin
        if stated:
            preference[b] = example.preference
    tables, slots = _tables(examples, groups, m, source.prepared.drawn)
    seen = functools.cache(source.picture)  # a picture may be there to be drawn, and as it is
    pictures = [[seen(use[0]) for use in table] for table in tables]
    shown = media(prompts, pictures, slots, shape.images, shape.cells)
    if source.prepared.drawn:
        shown = {**shown, drawn.TABLE: _drawn(tables, shape.images)}
    return types.Batch(
        prompts=prompts,
        prompt_lengths=prompt_lengths,
        media=shown,
        responses=responses,
        mask=mask,
        labels=types.Labels(rewards, weight, margin, axis, preference),
        ref_logps=_ref_logps(examples, mask, references) if references else None,
        spans=_spans(examples, mask.shape, spans) if spans else None,
    )


def _tables(examples, groups: int, contexts: int, drawn: tuple[int, ...]):
    """(images of each group; per row and context indices into its group's).

    An image is (number, context, row, place): (number, -1, -1, -1) once for all that show it as it
    is, and one of its own for each use in a `drawn` context.
    """
    tables: list[dict[tuple[int, int, int, int], int]] = [{} for _ in range(groups)]
    slots = []
    for b, example in enumerate(examples):
        table = tables[b * groups // len(examples)]
        used = example.images if example else ((),) * contexts
        named = [
            [(i, m, example.row, k) if m in drawn else (i, -1, -1, -1) for k, i in enumerate(own)]
            for m, own in enumerate(used)
        ]
        slots.append([[table.setdefault(i, len(table)) for i in context] for context in named])
    return [list(table) for table in tables], slots


def _drawn(tables, size: int) -> np.ndarray:
    """int32 [G, I, 3]: context, row and place of every image; -1 for those shown as they are."""
    found = np.full((len(tables), size, 3), -1, np.int32)
    for group, table in enumerate(tables):
        found[group, : len(table)] = np.asarray([entry[1:] for entry in table]).reshape(-1, 3)
    return found


def _ref_logps(examples, mask: np.ndarray, references) -> np.ndarray:
    """float32 [B, N, T], nats; 0 beyond each response."""
    ref = np.zeros_like(mask)
    places = [(b, n) for b, example in enumerate(examples) if example for n in range(mask.shape[1])]
    values = references.get([examples[b].keys[n] for b, n in places])
    for (b, n), logps in zip(places, values, strict=True):
        length = len(examples[b].responses[n])
        if len(logps) != length:
            raise ValueError(
                f"Row {examples[b].number}: {len(logps)} reference log-probabilities for "
                f"{length} tokens; the store {references.path!r} is damaged, delete it."
            )
        ref[b, n, :length] = logps
    return ref


def _spans(examples, shape: tuple[int, ...], names: Sequence[str]) -> dict[str, np.ndarray]:
    """{name: float32 [B, N, T]}, OUTSIDE where no span stands."""
    made = {name: np.full(shape, types.OUTSIDE, np.float32) for name in names}
    for name, table in made.items():
        for b, example in enumerate(examples):
            for n, weights in enumerate(example.spans.get(name, ()) if example else ()):
                table[b, n, : len(weights)] = weights
    return made


def _split(values, lengths) -> tuple[np.ndarray, ...]:
    ends = np.cumsum(lengths)
    return tuple(np.split(np.asarray(values, np.int32), ends[:-1])) if len(ends) else ()
