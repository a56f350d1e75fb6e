"""A run: R rounds of sampling, judging, pairing and training over one pool and one verdict store.

  RUN/rubrics.jsonl, verdicts.sqlite, cache/      shared by all rounds
  RUN/base/eval.json                              before training
  RUN/round_1/samples.jsonl  verdicts.jsonl  pairs.jsonl  train/  policy/  [adapter/]  eval.json
  RUN/round_2/ ...
  RUN/report.html

With config.online.updates a round samples, judges and trains in every step (online.py), and leaves
train/, policy/ and eval.json alone.

Stages share nothing but these files, so each can be run alone, and a run that was killed goes on in
the stage where it stood.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rubric_jax import checkpoint, evals, judges, models, recipes, report, types
from rubric_jax import config as config_lib
from rubric_jax.data import instructions, sources
from rubric_jax.models import adapter_files, head_files, weights
from rubric_jax.rubrics import pool as pool_lib
from rubric_jax.rubrics import records
from rubric_jax.stages import checks, evaluate, files, online, pair, policies, schedule, training
from rubric_jax.stages import judge as judge_stage
from rubric_jax.stages import rubrics as rubrics_stage
from rubric_jax.stages import sample as sample_stage
from rubric_jax.train import loop
from rubric_jax.train import setup as setup_lib

BASE = "base"
_AROUND = ("pool", "sample", "judging", "pair", "rounds", "evaluation")
_ONLINE = ("judging", "rounds", "evaluation")  # what else is around makes an online step's batch


class Interrupted(Exception):
    """Training was told to stop, and saved; the same command goes on."""


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A config and its work directory. Methods are the stages; each does what is still missing."""

    config: config_lib.Config
    workdir: str

    def rubrics(self) -> dict[str, Any]:
        """Writes the rubrics that the pool lacks, of training and held-out instructions."""
        asked = [*self._asked.values(), *(self._held_out.values() if self._has_eval else ())]
        counts: dict[str, Any] = {}
        if self._is_writer:
            spec, axes = self.config.pool.writer, self.config.data.axes
            counts = rubrics_stage.write_rubrics(
                spec, asked, self._pool_path, axes=axes, failures=self.config.pool.failures
            )
        setup_lib.barrier()
        return counts

    def sample(self, number: int) -> dict[str, Any]:
        """K responses of the round's policy (and of pair.other) to every instruction."""
        self._need_stages("sample")
        counts = self._sample(self._model(number), self.path(number, "samples.jsonl"), number)
        if self.config.pair.other:
            other = self.path(number, "other", "samples.jsonl")
            model = dataclasses.replace(
                self.config.model, checkpoint=self.config.pair.other, reference="", adapter={}
            )
            self._sample(model, other, number)
        return counts

    def judge(self, number: int, again: tuple[str, ...] = ()) -> dict[str, Any]:
        """Verdicts on the round's responses; again: statuses to ask for once more."""
        self._need_stages("judge")
        spec = self.config.judging.judge
        counts = self._judge(self.path(number), spec, self._asked, number, again=again)
        if self.config.pair.other:
            self._judge(self.path(number, "other"), spec, self._asked, number, again=again)
        return counts

    def pair(self, number: int) -> dict[str, Any]:
        """Preference data from the round's verdicts."""
        self._need_stages("pair")
        folder, spec = self.path(number), self.config.pair.recipe
        judged = [("", *self._judged(folder, self._asked))]
        if self.config.pair.other:
            judged.append(("other", *self._judged(self.path(number, "other"), self._asked)))
        axes = self._axes(judged[0][2])
        aggregation = self.config.pair.aggregation
        groups = pair.groups(self._asked, judged, axes, aggregation)
        starts = recipes.prompts(spec)
        continued = os.path.join(folder, "continued", "samples.jsonl")
        if starts is not None:
            found = starts(groups)
            self._continue(found, continued, number)
            groups = pair.with_continued(groups, found, sample_stage.read_samples(continued))
        counts: dict[str, Any] = {}
        if self._is_writer:
            read = [os.path.join(folder, name) for name in ("samples.jsonl", "verdicts.jsonl")]
            if self.config.pair.other:
                other = self.path(number, "other")
                read += [os.path.join(other, name) for name in ("samples.jsonl", "verdicts.jsonl")]
            read += [continued] if starts is not None else []
            inputs = {os.path.relpath(path, folder): files.digest(path) for path in read}
            pool = self.config.pool
            inputs["instructions"] = sources.fingerprint(pool.path, pool.split)
            settings = {
                "recipe": spec,
                "aggregation": aggregation,
                "axes": axes,
                "seed": self.config.seed,
            }
            file = files.File(self.path(number, "pairs.jsonl"), "pair", settings, inputs)
            seed = self._seed(number)
            counts = pair.write_pairs(spec, groups, self._asked, axes, file, seed=seed)
        setup_lib.barrier()
        return counts

    def train(self, number: int) -> loop.Outcome:
        """Trains the round's policy, and exports it for transformers.

        On its pairs, or with config.online.updates on samples of every step.

        Raises:
          Interrupted: told to stop; the checkpoint is saved.
        """
        config, policy = self.training(number), self.path(number, "policy")
        made_from = {"start": self._fingerprint(number)}
        jury = self._jury() if self._online else None
        if self._online:
            pool = self.config.pool
            made_from["instructions"] = sources.fingerprint(pool.path, pool.split)
            made_from |= jury.inputs if jury else {}
        else:
            made_from["pairs"] = files.digest(config.data.path)
        known = policies.step_of(policy, config_lib.to_dict(config), made_from)
        setup_lib.barrier()  # nobody may write before everybody has looked
        if known is not None:
            return loop.Outcome(known, True, {})
        trained = self.path(number, "train")
        if self._online:
            outcome = online.train(config, trained, self._asked, jury, seed=self._seed(number))
        else:
            outcome, trained = schedule.fit(config, trained)
        if not outcome.finished:
            raise Interrupted(trained)
        beside = self.path(number, "adapter") if training.has_adapter(trained) else ""
        dtype = config.model.param_dtype
        training.hand_on(trained, policy + ".part", dtype=dtype, adapter=beside)
        if self._is_writer:
            policies.place(policy, config_lib.to_dict(config), made_from, outcome.step)
        setup_lib.barrier()
        return outcome

    def eval(self, number: int) -> dict[str, Any]:
        """Measures of the policy after round `number` (0: the base) on held-out instructions."""
        if not self._has_eval:
            raise ValueError("config.pool.eval_path is empty; name held-out instructions.")
        folder, own = self.path(number, "eval"), self.config.evaluation
        held_out = (self.config.pool.eval_path, self.config.pool.eval_split)
        knobs = dataclasses.replace(
            self.config.sample,
            count=own.count,
            temperature=own.temperature,
            contrast=own.contrast,
        )
        if own.temperature == 0:
            knobs = dataclasses.replace(knobs, top_k=0, top_p=1.0, min_p=0.0)
        config = dataclasses.replace(self.config, sample=knobs)
        model = self._model(number + 1)
        self._sample(model, os.path.join(folder, "samples.jsonl"), 0, config, held_out)
        judge = own.judge or self.config.judging.judge
        self._judge(folder, judge, self._held_out, 0, assign=False)
        samples, verdicts = self._judged(folder, self._held_out)
        axes = self._axes(verdicts)
        groups = pair.groups(self._held_out, [("", samples, verdicts)], axes, own.aggregation)
        pairs = self._pairs(number) if own.pairs else {}
        value: dict[str, Any] = {}
        if self._is_writer:
            out, name = self.path(number, "eval.json"), _name(number)
            identity = judges.build(judge).identity._asdict()
            value = evaluate.write_measures(
                out, name, groups, axes, own, judge=identity, pairs=pairs
            )
        setup_lib.barrier()
        return value

    def report(self) -> str:
        """The page of the run, from whatever is there; returns its path."""
        return str(report.write(self.workdir))

    def all(self) -> str:
        """Every stage of every round; returns the report's path."""
        self.begin()
        if self._is_writer:
            checkpoint.claim(self.workdir, config_lib.to_dict(self.config), force=True)
        if self._needs_rubrics:
            self.rubrics()
        if self._has_eval:
            self.eval(0)
        for number in range(1, self.config.rounds.count + 1):
            if not self._online:
                self.sample(number)
                self.judge(number)
                self.pair(number)
            self.train(number)
            if self._has_eval:
                self.eval(number)
        return self.report() if self._is_writer else ""

    def begin(self) -> None:
        """Checks the config, and writes config.json if there is none.

        Which files a stage may go on with, their manifests say; the config that is there may
        differ, and `all` replaces it.
        """
        self.check()
        for path, split in self._pools:
            first = instructions.read(path, split, confine=self.config.data.confine_images)
            if next(first, None) is None:
                raise ValueError(f"{path}: holds no instructions.")
        if self._is_writer and not os.path.exists(os.path.join(self.workdir, "config.json")):
            checkpoint.claim(self.workdir, config_lib.to_dict(self.config))

    def check(self) -> None:
        """Everything that a config can get wrong, before any device work."""
        checks.check(self.config, self.training_data)

    def path(self, number: int, *parts: str) -> str:
        """A path of the base (0) or of a round."""
        return os.path.join(self.workdir, _name(number), *parts)

    # What the stages share.

    @property
    def _is_writer(self) -> bool:
        return jax.process_index() == 0

    @property
    def _rule(self) -> str:
        return self.config.rounds.reference

    @property
    def _online(self) -> bool:
        return self.config.online.updates > 0

    def _need_stages(self, stage: str) -> None:
        if self._online:
            raise ValueError(
                f"With config.online.updates there is no stage `{stage}`: the command `train "
                "--round=N` samples and judges in every step. Set it to 0 for rounds of stages."
            )

    @property
    def _judged_online(self) -> bool:
        return recipes.judged(self.config.pair.recipe)

    @property
    def _needs_rubrics(self) -> bool:
        return self._has_eval or not self._online or self._judged_online

    @property
    def _has_eval(self) -> bool:
        return bool(self.config.pool.eval_path)

    @property
    def _pools(self) -> list[tuple[str, str]]:
        pool = self.config.pool
        held_out = [(pool.eval_path, pool.eval_split)] if self._has_eval else []
        return [(pool.path, pool.split), *held_out]

    @property
    def _cache(self) -> str:
        return setup_lib.cache_directory(self.config, self.workdir)

    @property
    def _pool_path(self) -> str:
        return self.config.pool.rubrics or os.path.join(self.workdir, "rubrics.jsonl")

    @functools.cached_property
    def _store(self) -> judges.Store:
        path = self.config.judging.store or os.path.join(self.workdir, "verdicts.sqlite")
        return judges.Store(path)

    @functools.cached_property
    def _asked(self) -> dict[str, instructions.Instruction]:
        pool = self.config.pool
        return self._instructions(pool.path, pool.split)

    @functools.cached_property
    def _held_out(self) -> dict[str, instructions.Instruction]:
        return self._instructions(self.config.pool.eval_path, self.config.pool.eval_split)

    def _instructions(self, path: str, split: str) -> dict[str, instructions.Instruction]:
        found = instructions.read(path, split, confine=self.config.data.confine_images)
        return {task.id: task for task in found}

    def _policy(self, number: int) -> str:
        """The policy that round `number` starts from."""
        if number <= 1:
            return str(models.directory(self.config.model.checkpoint))
        policy = self.path(number - 1, "policy")
        if not os.path.isdir(policy):
            raise ValueError(f"No {policy}; train round {number - 1} first.")
        return policy

    def _model(self, number: int) -> config_lib.Model:
        """The model group for reading the policy that round `number` starts from.

        Later rounds start from a directory into which the adapter was merged.
        """
        start = self.config.model.adapter.get("start") if number <= 1 else ""
        return dataclasses.replace(
            self.config.model,
            checkpoint=self._policy(number),
            reference="",
            adapter={"start": start} if start else {},
        )

    def _fingerprint(self, number: int) -> str:
        """Of the weights that round `number` starts from."""
        model = self._model(number)
        spec = models.build(model.family, model.checkpoint).weights
        found = weights.fingerprint(model.checkpoint, spec)
        heads, start = head_files.fingerprint(model.checkpoint), model.adapter.get("start")
        found = f"{found} {heads}" if heads else found
        return f"{found}+{adapter_files.fingerprint(start)}" if start else found

    def _seed(self, number: int) -> int:
        """Of what round `number` draws, apart from its training; 0 = the evaluation."""
        return self.config.seed * 1000 + number

    def _sample(self, model, out, number, config=None, pool=None) -> dict[str, Any]:
        config = config or self.config
        path, split = pool or (config.pool.path, config.pool.split)
        return sample_stage.write_samples(
            dataclasses.replace(config, model=model),
            out,
            path=path,
            split=split,
            cache=self._cache,
            seed=self._seed(number),
        )

    def _judge(self, folder, spec, asked, number, assign=True, again=()) -> dict[str, Any]:
        counts: dict[str, Any] = {}
        if self._is_writer:
            path = os.path.join(folder, "samples.jsonl")
            name = self.config.pair.recipe.get("recipe")
            whose = recipes.RUBRIC_OF.get(name) if assign else None
            judge, knobs = judges.build(spec), self.config.judging
            file = files.File(
                os.path.join(folder, "verdicts.jsonl"),
                "judge",
                {
                    "judge": judge.identity._asdict(),
                    "rubric_of": f"{name}/{self._seed(number)}" if whose else "own",
                },
                {"samples": files.digest(path), "rubrics": self._rubrics_digest(asked)},
            )
            pool, samples = pool_lib.load(self._pool_path), sample_stage.read_samples(path)
            if self.config.pool.failures:  # allowed to have no rubric, and then no verdicts
                samples = {
                    i: row
                    for i, row in samples.items()
                    if i not in asked or asked[i].key in pool.rubrics
                }
            counts = judge_stage.write_verdicts(
                judge,
                asked,
                samples,
                pool,
                self._store,
                file,
                assign=whose,
                seed=self._seed(number),
                again=again,
                failures=knobs.failures,
            )
        setup_lib.barrier()
        return counts

    def _rubrics_digest(self, asked: Mapping[str, instructions.Instruction]) -> str:
        """Of the rubrics of these instructions: the pool may grow by others meanwhile."""
        pool = pool_lib.load(self._pool_path)
        allowed = self.config.pool.failures > 0
        digests = sorted(
            pool.of(task.key).digest
            for task in asked.values()
            if task.key in pool.rubrics or not allowed
        )
        return files.digest_of(digests)

    def _judged(self, folder, asked) -> tuple[dict, dict]:
        path = os.path.join(folder, "samples.jsonl")
        samples = sample_stage.read_samples(path)
        judge_stage.check_together(asked, samples, path)
        return samples, judge_stage.read_verdicts(os.path.join(folder, "verdicts.jsonl"), samples)

    def _axes(self, verdicts: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
        """The axes of these verdicts: the run's, or the single one of a judge without a rubric."""
        found = records.axes_of([row["rubric"] for row in verdicts.values()])
        if found == ("overall",) or not self.config.data.axes:
            return found
        return self.config.data.axes

    def _jury(self) -> online.Jury | None:
        """Who judges in every step; None for a recipe without verdicts."""
        if not self._judged_online:
            return None
        pool, judge = pool_lib.load(self._pool_path), judges.build(self.config.judging.judge)
        allowed = self.config.pool.failures > 0
        rubrics = {
            ident: judge.rubric(pool.of(task.key))
            for ident, task in self._asked.items()
            if task.key in pool.rubrics or not allowed
        }
        return online.Jury(judge, self._store, rubrics, self.config.judging.failures)

    def _online_axes(self) -> tuple[str, ...]:
        jury = self._jury()
        if jury is None:
            return self.config.data.axes
        return self._axes({i: {"rubric": rubric} for i, rubric in jury.rubrics.items()})

    def training_data(self) -> config_lib.Data:
        """The config's data group with the branches that the recipe makes."""
        branches = recipes.layout(self.config.pair.recipe, self.config.sample.count)
        own = self.config.data.branches
        responses = {types.split_branch(branch)[0] for branch in own}
        if responses == set(branches) or (self._online and responses >= set(branches)):
            # The same responses, under contexts of the user's choice; online, perhaps beside
            # columns of the instructions.
            branches = own
        return dataclasses.replace(self.config.data, branches=branches, cache=self._cache)

    def training(self, number: int) -> config_lib.Config:
        """The config of the round's training, as `train` alone would take it."""
        pairs, around = self.path(number, "pairs.jsonl"), _AROUND
        if self._online:
            axes, pairs, around = self._online_axes(), "", _ONLINE
        else:
            manifest = files.read_manifest(pairs)
            files.need_finished(pairs, made_by="pair")
            axes = tuple(manifest["config"]["axes"]) if manifest else self.config.data.axes
        policy, model = self._policy(number), self.config.model
        reference = {"round": policy, "base": model.checkpoint, "fixed": model.reference}
        rounds, steps, adapter = self.config.rounds, self.config.train.steps, model.adapter
        if adapter and number > 1:  # the one before was merged
            adapter = adapter_files.anew(adapter, models.build(model.family, policy))
        if rounds.updates:
            steps = rounds.updates // rounds.count
            steps += number <= rounds.updates % rounds.count
        return dataclasses.replace(
            self.config,
            model=dataclasses.replace(
                model,
                checkpoint=policy,
                reference=reference[rounds.reference],
                adapter=adapter,
            ),
            data=dataclasses.replace(
                self.training_data(),
                path=pairs,
                axes=axes,
                # The instructions were; the pairs stand elsewhere.
                confine_images=self._online and self.config.data.confine_images,
            ),
            train=dataclasses.replace(self.config.train, steps=steps),
            # What is of no consequence to the training does not name its work directory.
            **{group: getattr(config_lib.Config(), group) for group in around},
        )

    def _continue(self, starts: list[recipes.Start], out: str, number: int) -> None:
        """Samples one continuation of each start, without the picture."""
        folder = pathlib.Path(out).parent
        prompts = folder / "prompts.jsonl"
        if self._is_writer:
            folder.mkdir(parents=True, exist_ok=True)
            rows = pair.unseeing(starts, self._asked)
            prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        setup_lib.barrier()
        plain = dataclasses.replace(self.config.sample, count=1, contrast={})
        config = dataclasses.replace(self.config, sample=plain)
        self._sample(self._model(number), out, number, config, (str(prompts), ""))

    def _pairs(self, number: int) -> dict[str, np.ndarray]:
        """Pair accuracy on held-out preference data: of the implicit rewards against the base's,
        and of the scores of the heads that the policy has."""
        sums, data, heads = [], self.config.data, {}
        path = self.config.evaluation.pairs
        for which in dict.fromkeys((number, 0)):
            file = files.File(
                self.path(which, "eval", "pairs.npz"),
                "score",
                {"max_prompt": data.max_prompt, "max_response": data.max_response},
                {
                    "pairs": sources.fingerprint(path, data.eval_split),
                    "policy": self._fingerprint(which + 1),
                },
            )
            done = files.begin(file) if self._is_writer else False
            if not setup_lib.agreed(done):
                model = self._model(which + 1)
                pairs = dataclasses.replace(
                    data,
                    path=path,
                    split=data.eval_split,
                    branches=recipes.PAIR,
                    contexts={},
                    differences=(),
                    rated={},
                    weights={},
                    cache=self._cache,
                )
                training.score(
                    dataclasses.replace(self.config, model=model, data=pairs), file.path, None
                )
                if self._is_writer:
                    files.finish(file, {})
                setup_lib.barrier()
            with np.load(file.path) as arrays:
                sums.append(arrays["sums"])
                if which == number:
                    heads = _heads(arrays, self._policy(number + 1))
        return evals.implicit(sums[0], sums[-1]) | heads


def _heads(arrays: Mapping[str, np.ndarray], policy: str) -> dict[str, np.ndarray]:
    """Measures of the heads per branch, of one output, that were trained with a policy."""
    found: dict[str, np.ndarray] = {}
    for name in head_files.saved(policy):
        scores = arrays.get(f"heads/{name}")
        if scores is not None and scores.shape[-1] == 1:
            found |= evals.of_head(name, scores[..., 0])
    return found


def _name(number: int) -> str:
    return f"round_{number}" if number else BASE
