"""online: training whose every step samples from the policy as it is.

One turn of the loop in train/loop.py:

  rows of the plan   which instructions, as in training on stored data
  -> samples         K responses each, from the parameters of this moment
  -> groups          judged under their rubrics by way of the verdict store, aggregated to rewards
  -> branches        by the recipe, with the very token ids that were sampled and their
                     log-probabilities (`Batch.behaviour`)
  -> `online.updates` optimizer steps

Response (instruction, k) of turn s has a random stream keyed by (seed, s, instruction), a turn
begins and ends between checkpoints, and a verdict is never asked for twice: a run that was killed
samples, judges and ends as one that was not.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from rubric_jax import checkpoint, judges, recipes, sharding, types
from rubric_jax import config as config_lib
from rubric_jax.data import instructions, loading
from rubric_jax.judges import rules
from rubric_jax.recipes import groups as groups_lib
from rubric_jax.rubrics import records
from rubric_jax.stages import batching, files, measuring, pair
from rubric_jax.stages import sample as sample_stage
from rubric_jax.train import loop
from rubric_jax.train import setup as setup_lib

SHOWN = "responses.jsonl"
_LEAST = 1000  # a share of failed verdicts is taken of so many at least


@dataclasses.dataclass(frozen=True, eq=False)
class Jury:
    """Who judges the samples, under which rubrics."""

    judge: judges.Judge
    store: judges.Store
    rubrics: Mapping[str, records.Rubric]  # by instruction; those without one are left out
    failures: float = 0.0  # share of verdicts that may fail for good

    @property
    def inputs(self) -> dict[str, str]:
        """What a run's rewards depend on."""
        digests = sorted(rubric.digest for rubric in self.rubrics.values())
        identity = json.dumps(self.judge.identity._asdict(), sort_keys=True)
        return {"judge": identity, "rubrics": files.digest_of(digests)}


def train(
    config: config_lib.Config,
    workdir: str,
    asked: Mapping[str, instructions.Instruction],
    jury: Jury | None,
    *,
    seed: int,
) -> loop.Outcome:
    """Trains, or goes on training.

    Args:
      config: `pool.path`, `sample`, `pair` and `online` count besides what training reads.
      workdir: of the training.
      asked: the instructions of config.pool by id.
      jury: None for recipes that need no verdicts.
      seed: of the samples; another one in every round.

    Raises:
      ValueError: a config that does not fit, or too many verdicts that failed.
    """
    objective = setup_lib.objective(config)
    loop.check_best(config)
    if jury is not None and objective.needs_rewards:
        _check_axes(jury, config)
    setup = setup_lib.build(config)
    layout = batching.columns(setup.layout, config)
    checkpoint.claim(workdir, config_lib.to_dict(config), force=not loop.has_saved(workdir))
    cache = setup_lib.cache_directory(config, workdir)
    bare = dataclasses.replace(setup, layout=layout)
    source = setup_lib.source(bare, config.pool.path, config.pool.split, cache)
    usable = [jury is None or str(ident) in jury.rubrics for ident in source.index["id"]]
    plan = setup_lib.plan(setup, source, shuffle=True, rows=np.flatnonzero(usable))
    if setup.is_writer:
        print(_summary(config, source, plan, sum(usable)), file=sys.stderr, flush=True)
    turns = plan.steps_per_epoch * config.train.epochs
    steps = config.train.steps or math.ceil(turns) * config.online.updates
    maker = Maker(setup, objective, asked, jury, workdir, seed)
    return loop.run(
        setup,
        objective,
        workdir,
        steps,
        loop.Data(source, plan, None),
        loop.held_out_data(setup, objective, cache),
        turns=maker.turns,
        inputs=jury.inputs if jury else {},
    )


class _Judged(NamedTuple):
    """What the first process tells the others, beside the batch's choice."""

    choice: batching.Choice
    metrics: np.ndarray  # float32, in the order of the maker's names


@dataclasses.dataclass(eq=False)
class Maker:
    """Makes batches of fresh samples."""

    setup: setup_lib.Setup
    objective: Any
    asked: Mapping[str, instructions.Instruction]
    jury: Jury | None
    workdir: str
    seed: int

    def __post_init__(self):
        config = self.setup.config
        self.recipe = recipes.build(config.pair.recipe)
        self.aggregate = pair.aggregate(config.pair.aggregation)
        self.names = measuring.names(config.data.axes, judged=self.jury is not None)
        self.verdicts = self.failed = 0  # of this start
        # Rewards are computed by the first process alone, so not on the mesh of all.
        self.own_mesh = sharding.make(config_lib.Mesh(data=1), jax.local_devices()[:1])

    def turns(self, setup: setup_lib.Setup, data: loop.Data, first: int, steps: int):
        """See loop.Turns."""
        updates = self.setup.config.online.updates
        ids = [str(ident) for ident in data.source.index["id"]]
        batches = setup_lib.batches(
            setup, data.source, data.plan, start=-(-first // updates), stop=-(-steps // updates)
        )
        if setup.is_writer:
            _forget(os.path.join(self.workdir, SHOWN), first)

        def take(step: int, params: types.Params) -> loop.Turn:
            loaded, _ = next(batches)
            _, rows = data.plan(step // updates)
            names = [ids[row] if row >= 0 else "" for row in rows]
            return self.turn(step, names, loaded, params)

        return take

    def turn(
        self, step: int, names: Sequence[str], loaded: types.Batch, params: types.Params
    ) -> loop.Turn:
        """Samples, judges and lays out one batch.

        Args:
          step: optimizer steps taken.
          names: ids of all processes' rows; "" = padding.
          loaded: this process's rows as the source has them.
          params: of the policy.
        """
        setup, started = self.setup, time.perf_counter()
        updates = setup.config.online.updates
        stream = f"{self.seed}/online/{step // updates}"
        seeds = sample_stage.seeds(stream, names, np.arange(len(names)))
        bare = loaded._replace(responses=None, mask=None, labels=None)
        found = sample_stage.draw(setup, params, bare, seeds)
        sampled = time.perf_counter()
        judged = self._agreed(step, names, found)
        index, count = sharding.process_block(setup.mesh)
        own = jax.tree.map(lambda x: np.split(x, count)[index], (found, judged.choice))
        batch = batching.assemble(setup, loaded, *own)
        _check_labels(self.objective, batch.labels)
        metrics = dict(zip(self.names, judged.metrics.tolist(), strict=True))
        metrics["seconds/sample"] = sampled - started
        metrics["seconds/judge"] = time.perf_counter() - sampled
        return loop.Turn(batch, updates, metrics)

    def _agreed(self, step: int, names: Sequence[str], found) -> _Judged:
        """What the first process finds, on all."""
        if self.setup.is_writer:
            with jax.set_mesh(self.own_mesh):
                judged = self._judge(step, names, found)
        else:
            choice = batching.nothing(self.setup, len(names))
            judged = _Judged(choice, np.zeros(len(self.names), np.float32))
        if jax.process_count() > 1:
            judged = multihost_utils.broadcast_one_to_all(judged)
            judged = jax.tree.map(np.asarray, judged)
        return judged

    def _judge(self, step: int, names: Sequence[str], found) -> _Judged:
        axes = self.setup.config.data.axes
        texts = sample_stage.texts(self.setup, found)
        real = [b for b, name in enumerate(names) if name]
        items = self._items(step, [names[b] for b in real], [texts[b] for b in real])
        if self.jury is None:
            groups = [groups_lib.unjudged(item, len(axes)) for item in items]
        else:
            groups = groups_lib.build(items, axes, self.aggregate)
        mined = self.recipe(groups, axes, seed=self.seed * 1_000_003 + step)
        by_name = {row.group: row for row in mined.rows}
        choice = batching.choose(self.setup, [by_name.get(name) for name in names], self.objective)
        self._show(step, groups)
        values = measuring.values(groups, mined.rows, axes, judged=self.jury is not None)
        return _Judged(choice, np.array(values, np.float32))

    def _items(self, step: int, names: Sequence[str], texts: Sequence[Sequence]) -> list[dict]:
        """The fields of groups, judged if there is a jury."""
        under = {name: rules.at(self.jury.rubrics[name], step) for name in names if self.jury}
        scores = self._scores(names, texts, under)
        items = []
        for name, responses in zip(names, texts, strict=True):
            task = self.asked[name]
            items.append(
                {
                    "id": name,
                    "instruction": task.text,
                    "answer": task.answer,
                    "reference": task.reference,
                    "source": task.source,
                    "rubric": under.get(name),
                    "responses": tuple(
                        groups_lib.Response(
                            text=response["text"],
                            finished=response["finished"],
                            tokens=len(response["ids"]),
                            scores=scores.get(f"{name}/{k}"),
                        )
                        for k, response in enumerate(responses)
                    ),
                }
            )
        return items

    def _scores(self, names, texts, under) -> dict[str, Mapping[str, float]]:
        """Scores by request id; without those that got no usable verdict."""
        if self.jury is None:
            return {}
        requests = [
            judges.Request(f"{name}/{k}", instance, response["text"], under[name])
            for name, responses in zip(names, texts, strict=True)
            for instance in [self.asked[name].instance()]
            for k, response in enumerate(responses)
        ]
        found, tally = judges.collect(self.jury.judge, requests, self.jury.store)
        self.verdicts += len(requests)
        self.failed += tally.statuses["failed"]
        if self.failed > self.jury.failures * max(self.verdicts, _LEAST):
            raise ValueError(
                f"{self.failed} of {self.verdicts} verdicts failed, such as: {tally.failures[0]}. "
                f"The others are stored in {self.jury.store.path}. Run the same command again to "
                "go on from the last checkpoint, or let config.judging.failures allow them."
            )
        return {
            ident: verdict.scores
            for ident, verdict in found.items()
            if verdict.status in ("scored", "partial")
        }

    def _show(self, step: int, groups: Sequence[groups_lib.Group]) -> None:
        """Appends some responses of a logged turn to WORKDIR/responses.jsonl."""
        config = self.setup.config
        every, updates = config.train.log_every, config.online.updates
        if not loop.passed(every, step, step + updates):
            return
        appender = files.Appender(os.path.join(self.workdir, SHOWN))
        appender.add(_shown(step, group) for group in groups[: config.online.shown])
        appender.close()


def _check_labels(objective: Any, labels: types.Labels) -> None:
    """Raises ValueError on every process where a row of any of them does not suit a term.

    labels: of this process's rows. One that raised alone would leave the others waiting in the
    step.
    """
    if jax.process_count() > 1:
        labels = multihost_utils.process_allgather(labels, tiled=True)
    objective.check(labels)


def _shown(step: int, group: groups_lib.Group) -> dict[str, Any]:
    responses = [
        {
            "text": response.text,
            "finished": response.finished,
            "reward": float(total) if valid else None,
            "scores": response.scores and dict(response.scores),
        }
        for response, total, valid in zip(group.responses, group.total, group.valid, strict=True)
    ]
    return {"step": step, "id": group.id, "responses": responses}


def _forget(path: str, first: int) -> None:
    """Takes out what a killed run wrote after the step that this one starts from."""
    if not os.path.exists(path):
        return
    rows = [row for _, row in files.lines(path, made_by="train") if row["step"] < first]
    with checkpoint.disk_errors(os.path.dirname(path)):
        with open(path + ".tmp", "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
        os.replace(path + ".tmp", path)


def _check_axes(jury: Jury, config: config_lib.Config) -> None:
    """Every axis needs a reward from somewhere; a rubric without it gives 0 to all responses."""
    known = {*records.axes_of(list(jury.rubrics.values())), *recipes.axes(config.pair.recipe)}
    lacking = [axis for axis in config.data.axes if axis not in known]
    if lacking:
        raise ValueError(
            f"The objective reads rewards on {', '.join(config.data.axes)}, and no rubric has a "
            f"criterion for {', '.join(lacking)}; add one, or leave the axis out of "
            "config.data.axes."
        )


def _summary(config, source: loading.Source, plan: loading.Plan, usable: int) -> str:
    counts = source.prepared.counts
    dropped = "".join(f", {n} dropped ({why})" for why, n in counts.dropped.items() if n)
    lacking = f", {counts.kept - usable} without a rubric" if usable < counts.kept else ""
    shapes = ", ".join(f"{shape.prompt} + {config.sample.tokens}" for shape in plan.shapes)
    return (
        f"{config.pool.path}: {usable} of {counts.rows} instructions{dropped}{lacking}; "
        f"{config.train.batch_size} x {config.sample.count} responses a turn, "
        f"{config.online.updates} step(s) each; tokens: {shapes}"
    )
