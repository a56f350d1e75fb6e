"""Training: prepare, place, restore or start, step until done or told to leave."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from rubric_jax import checkpoint, metrics, models, objectives, paths, sharding, types
from rubric_jax import config as config_lib
from rubric_jax.data import audit, loading
from rubric_jax.train import memory, optimizer, passes
from rubric_jax.train import setup as setup_lib
from rubric_jax.train import step as step_lib


class Outcome(NamedTuple):
    step: int  # optimizer steps taken, over all starts of this work directory
    finished: bool  # False: told to leave; start again to go on
    metrics: dict[str, float]  # of the last evaluation, {} if there is no held-out data


class Data(NamedTuple):
    source: loading.Source
    plan: loading.Plan
    references: Any  # data.references.References, or None


class Functions(NamedTuple):
    """The compiled parts of a run."""

    start: Callable  # params -> state
    step: Callable  # (state, batch, knobs, ref_params) -> (state, metrics)
    evaluate: Callable  # (params, batch, knobs, loss_state, ref_params) -> metrics
    schedule: Callable  # step -> learning rate
    state: step_lib.State  # shapes with shardings


def train(config: config_lib.Config, workdir: str) -> Outcome:
    """Runs or resumes a run in its work directory.

    Everything is a function of the config and the step, so a run that was killed and started again
    ends with the same bits as one that was not.
    """
    objective = setup_lib.objective(config)  # names first: a slip costs no device time
    setup = setup_lib.build(config)
    checkpoint.claim(workdir, config_lib.to_dict(config))
    cache = setup_lib.cache_directory(config, workdir)
    source = setup_lib.source(setup, config.data.path, config.data.split, cache)
    plan = setup_lib.plan(setup, source, shuffle=True)
    _say(setup, audit.table(source.prepared, plan, title=config.data.path))
    _say(setup, "\n".join(memory.lines(setup, plan)))
    _check_labels(objective, source)
    steps = config.train.steps or math.ceil(config.train.epochs * plan.steps_per_epoch)
    data, held_out = Data(source, plan, None), None
    if config.data.eval_path:
        held = setup_lib.source(setup, config.data.eval_path, config.data.eval_split, cache)
        held_out = Data(held, setup_lib.plan(setup, held, shuffle=False), None)
    _check_best(config)
    functions = compile_functions(setup, objective, steps)
    with (
        checkpoint.Manager(
            workdir,
            keep=config.train.keep,
            keep_best=config.train.keep_best,
            best_metric=config.train.best_metric,
            best_mode=config.train.best_mode,
        ) as manager,
        jax.set_mesh(setup.mesh),
    ):
        return _run(setup, objective, functions, manager, workdir, steps, data, held_out)


def compile_functions(
    setup: setup_lib.Setup, objective: objectives.Objective, steps: int
) -> Functions:
    """Jits the step with its shardings and a donated state."""
    config, mesh = setup.config, setup.mesh
    trainable = optimizer.trainable(config.optimizer, setup.shapes)
    tx, schedule = optimizer.build(config.optimizer, paths.split(setup.shapes, trainable)[0], steps)
    loss_state = objective.init_state()

    def start(params):
        return step_lib.init(params, tx, trainable, loss_state)

    shapes = jax.eval_shape(start, setup.shapes)
    places, _ = sharding.place(mesh, setup.vlm.rules, shapes)
    task = step_lib.Task(setup.vlm, setup.layout, objective, config.model.logps_chunk)
    step = step_lib.make(
        task,
        tx,
        trainable,
        accumulate=config.train.accumulate,
        shards=sharding.data_shards(mesh),
    )
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    reference = setup.placement[0] if config.train.reference == "step" else None
    return Functions(
        start=jax.jit(start, out_shardings=places, donate_argnums=0),
        step=jax.jit(
            step,
            in_shardings=(places, rows, whole, reference),
            out_shardings=(places, whole),
            donate_argnums=0,
        ),
        evaluate=jax.jit(
            step_lib.make_eval(task),
            in_shardings=(places.params, rows, whole, places.loss_state, reference),
            out_shardings=whole,
        ),
        schedule=schedule,
        state=setup_lib.abstract(shapes, places),
    )


def _run(setup, objective, functions, manager, workdir, steps, data, held_out) -> Outcome:
    config = setup.config
    plain = config_lib.to_dict(config)
    state, ref_params, data, held_out = _begin(
        setup, functions, manager, workdir, data, held_out, objective
    )
    first = int(sharding.to_host(state.step))
    done, found = first, {}

    def evaluate() -> dict[str, float]:
        if held_out is None:
            return {}
        return _evaluate(setup, objective, functions, state, ref_params, held_out)

    def save(wait: bool = False) -> None:
        manager.save(done, state, position={"step": done}, config=plain, metrics=found, wait=wait)

    with (
        metrics.Writer(
            workdir,
            tensorboard=config.train.tensorboard,
            wandb_project=config.train.wandb_project,
            config=plain,
            is_writer=setup.is_writer,
            step=first,
        ) as writer,
        checkpoint.Preemption() as preemption,
    ):
        log = _Log(setup, writer, functions.schedule, data, first, steps)
        batches = setup_lib.batches(
            setup, data.source, data.plan, start=first, stop=steps, references=data.references
        )
        for batch, _ in batches:
            placed = sharding.put_batch(batch, setup.mesh)
            state, values = functions.step(state, placed, objective.knobs, ref_params)
            done += 1
            log.add(done, values, batch)
            leaving = preemption.reached()
            every = config.train.eval_every
            evaluated = done == steps or (every > 0 and done % every == 0)
            if evaluated and not leaving:
                found = evaluate()
                log.pause(done, found)
            if leaving or evaluated or done % config.train.checkpoint_every == 0:
                log.flush()  # a state that is not finite is never saved
                save(wait=leaving)
                found = found if done == steps else {}
            if leaving:
                log.close()
                _say(
                    setup,
                    f"{preemption.received or 'a signal'}: saved step {done}; the same "
                    "command goes on from there.",
                )
                return Outcome(done, False, {})
        log.close()
        if done == first and held_out is not None:  # nothing was left to do
            found = evaluate()
    return Outcome(done, True, found)


def _begin(setup, functions, manager, workdir, data, held_out, objective):
    """(state, reference parameters or None, data and held-out data with their references)."""
    config = setup.config
    reference = models.directory(config.model.reference or config.model.checkpoint)
    mode = config.train.reference if objective.needs_reference else "none"
    params = None
    if manager.latest() is None:
        params = setup_lib.load(setup)
    if mode == "cache":
        store = passes.reference_store(setup, setup_lib.cache_directory(config, workdir))

        def load():
            same = params is not None and reference == setup.directory
            return params if same else setup_lib.load(setup, reference)

        for part in (data, held_out):
            if part is not None:
                passes.fill_references(setup, store, part.source, load)
        data = data._replace(references=store)
        held_out = held_out and held_out._replace(references=store)
    ref_params = setup_lib.load(setup, reference) if config.train.reference == "step" else None
    if params is not None:
        state = functions.start(params)
    else:
        state, _ = manager.restore(functions.state)
        _say(setup, f"Resuming at step {manager.latest()}.")
    return state, ref_params, data, held_out


def _evaluate(setup, objective, functions, state, ref_params, data: Data) -> dict[str, float]:
    """Means over the held-out rows."""
    totals: dict[str, float] = {}
    batches = setup_lib.batches(
        setup, data.source, data.plan, stop=data.plan.steps_per_epoch, references=data.references
    )
    for batch, _ in batches:
        placed = sharding.put_batch(batch, setup.mesh)
        values = functions.evaluate(
            state.params, placed, objective.knobs, state.loss_state, ref_params
        )
        for name, value in sharding.to_host(values).items():
            totals[name] = totals.get(name, 0.0) + float(value)
    rows = totals.pop("rows")
    totals.pop("tokens")
    return {name: total / rows for name, total in totals.items()}


class _Log:
    """Metrics of a step are read once the next one is under way, so the device never waits."""

    def __init__(self, setup, writer: metrics.Writer, schedule, data: Data, first, steps):
        self._setup, self._writer, self._schedule, self._data = setup, writer, schedule, data
        self._every = setup.config.train.log_every
        self._speed = metrics.Throughput(jax.devices())
        self._pending: tuple[int, Mapping, int] | None = None
        self._window: list[dict[str, float]] = []
        self._shapes: set = set()
        self._steps = steps
        self._bar = tqdm.tqdm(
            total=steps, initial=first, desc="train", unit=" steps", disable=not setup.is_writer
        )

    def add(self, step: int, values: Mapping[str, jax.Array], batch: types.Batch) -> None:
        """Takes a step that was dispatched, and reads the one before it."""
        self.flush()
        shape = (batch.prompts.shape, batch.responses.shape)
        self._pending = (step, values, self._flops(step))
        if shape not in self._shapes:  # it has just compiled: not a time to measure
            self._shapes.add(shape)
            jax.block_until_ready(values)
            self._speed.restart()

    def flush(self) -> None:
        """Reads the step that is pending; FloatingPointError if its loss is not finite."""
        if self._pending is None:
            return
        (step, values, flops), self._pending = self._pending, None
        read = {name: float(value) for name, value in sharding.to_host(values).items()}
        if not math.isfinite(read["loss"]) or not math.isfinite(read["grad_norm"]):
            raise FloatingPointError(
                f"Step {step}: loss {read['loss']}, gradient norm {read['grad_norm']}. Nothing was "
                "saved after the last checkpoint; lower the learning rate, or look at the rows of "
                "this step."
            )
        self._speed.add(pairs=read.pop("rows"), tokens=read.pop("tokens"), flops=flops)
        self._window.append(read)
        self._bar.update()
        if step % self._every == 0 or step == self._steps:
            means = {
                name: float(np.mean([values[name] for values in self._window])) for name in read
            }
            means["learning_rate"] = float(self._schedule(step - 1))
            self._writer.write(step, means | self._speed.read())
            self._window.clear()
            self._bar.set_postfix_str(_short(means))

    def pause(self, step: int, found: Mapping[str, float]) -> None:
        """Writes an evaluation, whose time does not count as training."""
        self.flush()
        if found:
            self._writer.write(step, {f"eval/{name}": value for name, value in found.items()})
        self._speed.restart()

    def close(self) -> None:
        self.flush()
        self._bar.close()

    def _flops(self, step: int) -> float:
        """Of all processes' rows: forward and backward, and the reference if it is in the step."""
        _, rows = self._data.plan(step - 1)
        rows = rows[rows >= 0]
        index = self._data.source.index
        prompt = index["prompt_lengths"][rows].mean()
        response = index["response_lengths"][rows].mean()
        images = index["images"][rows].mean()
        once = self._setup.vlm.flops(self._setup.layout, prompt, response, images)
        times = 4 if self._setup.config.train.reference == "step" else 3
        return times * once * len(rows)


def _short(means: Mapping[str, float]) -> str:
    shown = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}
    return " ".join(f"{label} {means[name]:.3f}" for name, label in shown.items() if name in means)


def _check_labels(objective: objectives.Objective, source: loading.Source) -> None:
    """What an objective needs of the data must be there before the first step."""
    if not objective.needs_rewards:
        return
    counts = source.prepared.counts
    if counts.unrewarded:
        raise ValueError(
            f"The objective reads reward vectors, but {counts.unrewarded} of {counts.kept} rows of "
            "config.data.path lack a reward on some axis of config.data.axes. Add them as "
            "chosen_rewards and rejected_rewards, or take an objective without rewards."
        )
    axes = np.array([source[row].axis for row in range(len(source))], np.int32)
    rows = np.ones(len(source), np.float32)
    rewards = np.zeros((len(source), 1, len(source.prepared.axes)), np.float32)
    objective.check(types.Labels(rewards, weight=rows, margin=rows, axis=axes))


def _check_best(config: config_lib.Config) -> None:
    if config.train.keep_best and not (config.data.eval_path and config.train.eval_every):
        raise ValueError(
            "config.train.keep_best needs held-out data and evaluations to rank checkpoints by: "
            "set config.data.eval_path and config.train.eval_every."
        )


def _say(setup: setup_lib.Setup, text: str) -> None:
    if setup.is_writer:
        print(text, file=sys.stderr, flush=True)


__all__ = ["Outcome", "compile_functions", "train"]
