"""Training: prepare, place, restore or start, step until done or told to leave."""

from __future__ import annotations

import functools
import math
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from rubric_jax import checkpoint, metrics, objectives, paths, sharding, types
from rubric_jax import config as config_lib
from rubric_jax.data import audit, encoding, loading
from rubric_jax.models import adapters
from rubric_jax.models import heads as heads_lib
from rubric_jax.train import log as log_lib
from rubric_jax.train import memory, optimizer, passes, stopping
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


class Turn(NamedTuple):
    """What the loop takes at a time: a batch, and how it is used."""

    batch: types.Batch  # this process's rows, on the host
    updates: int = 1  # optimizer steps on it; checkpoints come after the last of them
    metrics: Mapping[str, float] = {}  # of how the batch was made
    flops: float = 0.0  # of a forward pass over all processes' rows; 0 = unknown


# Where turns come from: (setup, data, first, steps) -> take(steps done, parameters) -> Turn.
Turns = Callable[..., Callable[[int, types.Params], Turn]]


class Functions(NamedTuple):
    """The compiled parts of a run."""

    start: Callable  # params -> state
    # (state, batch, knobs, ref_params) -> (state, metrics). ref_params is None if the reference
    # moves: then it is state.ref.
    step: Callable
    evaluate: Callable  # (params, batch, knobs, loss_state, ref_params) -> metrics
    schedule: Callable  # step -> learning rate
    state: step_lib.State  # shapes with shardings


def train(config: config_lib.Config, workdir: str) -> Outcome:
    """Runs or resumes a run in its work directory.

    Everything is a function of the config and the step, so a run that was killed and started again
    ends with the same bits as one that was not.
    """
    objective = setup_lib.objective(config)  # names first: a slip costs no device time
    check_best(config)
    setup = setup_lib.build(config)
    # Before anything is saved there is nothing to protect, and a slip in a path can be mended.
    checkpoint.claim(workdir, config_lib.to_dict(config), force=not has_saved(workdir))
    cache = setup_lib.cache_directory(config, workdir)
    source = setup_lib.source(setup, config.data.path, config.data.split, cache)
    plan = setup_lib.plan(setup, source, shuffle=True)
    _say(setup, audit.table(source.prepared, plan, title=config.data.path))
    _say(setup, "\n".join(memory.lines(setup, plan)))
    _check_labels(objective, source, config.data.path)
    steps = config.train.steps or math.ceil(config.train.epochs * plan.steps_per_epoch)
    held_out = held_out_data(setup, objective, cache)
    return run(setup, objective, workdir, steps, Data(source, plan, None), held_out)


def held_out_data(
    setup: setup_lib.Setup, objective: objectives.Objective, cache: str
) -> Data | None:
    """The rows that evaluations read; None if the config names none."""
    config = setup.config.data
    if not config.eval_path:
        return None
    source = setup_lib.source(setup, config.eval_path, config.eval_split, cache)
    _check_labels(objective, source, config.eval_path)
    return Data(source, setup_lib.plan(setup, source, shuffle=False), None)


def run(
    setup: setup_lib.Setup,
    objective: objectives.Objective,
    workdir: str,
    steps: int,
    data: Data,
    held_out: Data | None,
    *,
    turns: Turns | None = None,
    inputs: Mapping[str, str] | None = None,
) -> Outcome:
    """Starts or resumes the loop in a work directory that was claimed.

    Args:
      data: what the turns are made from.
      held_out: what evaluations read; None = no evaluation.
      turns: where batches come from; None = the stored rows of `data`, in the order of its plan.
      inputs: names and hashes of further things that the run may not change under way.
    """
    config = setup.config
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
        job = _Job(setup, objective, functions, manager, workdir, steps, dict(inputs or {}))
        stored_turns = functools.partial(stored, spans=objective.spans)
        return _run(job, data, held_out, turns or stored_turns)


class _Job(NamedTuple):
    """What does not change while the loop runs."""

    setup: setup_lib.Setup
    objective: objectives.Objective
    functions: Functions
    manager: checkpoint.Manager
    workdir: str
    steps: int
    inputs: Mapping[str, str]


def stored(
    setup: setup_lib.Setup, data: Data, first: int, steps: int, *, spans: tuple[str, ...] = ()
):
    """Turns of one step each, on the rows that the plan names."""
    batches = setup_lib.batches(
        setup,
        data.source,
        data.plan,
        start=first,
        stop=steps,
        references=data.references,
        spans=spans,
    )

    def take(step: int, params: types.Params) -> Turn:
        batch, _ = next(batches)
        return Turn(batch, flops=_flops(setup, data, step))

    return take


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

    refresh = setup_lib.refresh(config, objective)
    shapes = jax.eval_shape(start, setup.shapes)
    if refresh:
        shapes = shapes._replace(ref=adapters.extract(setup.shapes) or setup.shapes)
    places, _ = sharding.place(mesh, setup.vlm.rules, shapes)
    task = setup_lib.task(setup, objective)
    step = step_lib.make(
        task,
        tx,
        trainable,
        accumulate=config.train.accumulate,
        shards=sharding.data_shards(mesh),
        refresh=refresh,
    )
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    inside = setup_lib.reference(config, objective) == "step"
    reference = places.ref if refresh else None
    if inside and not refresh:
        reference = setup_lib.reference_placement(setup)
    return Functions(
        start=jax.jit(start, out_shardings=places._replace(ref=None), donate_argnums=0),
        step=jax.jit(
            step,
            in_shardings=(places, rows, whole, None if refresh else reference),
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


def _run(job: _Job, data: Data, held_out: Data | None, turns: Turns) -> Outcome:
    setup, objective, functions, manager, workdir, steps, _ = job
    config = setup.config
    plain = config_lib.to_dict(config)
    state, ref_params, data, held_out, patience = _begin(job, data, held_out)
    first = int(sharding.to_host(state.step))
    done, found = first, {}

    def evaluate() -> dict[str, float]:
        if held_out is None:
            return {}
        ref = ref_params if state.ref is None else state.ref
        return _evaluate(setup, objective, functions, state, ref, held_out)

    def save(wait: bool = False) -> None:
        position = {
            "step": done,
            "patience": patience.position(),
            **_inputs(setup, data),
            **job.inputs,
        }
        manager.save(done, _saved(state), position=position, config=plain, metrics=found, wait=wait)

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
        log = log_lib.Log(
            setup,
            writer,
            schedule=functions.schedule,
            # Forward, backward (no gradient of kernels under an adapter), a reference in the step.
            passes=(2 if setup.adapter else 3) + (setup_lib.reference(config, objective) == "step"),
            first=first,
            steps=steps,
        )
        take = turns(setup, data, first, steps)
        while done < steps and not patience.over:
            turn, before = take(done, state.params), done
            placed = sharding.put_batch(turn.batch, setup.mesh)
            for _ in range(min(turn.updates, steps - done)):
                state, values = functions.step(state, placed, objective.knobs, ref_params)
                done += 1
                log.add(done, {**values, **turn.metrics}, turn.batch, turn.flops)
            leaving = preemption.reached()
            evaluated = done == steps or passed(config.train.eval_every, before, done)
            # A checkpoint's rank is written with it, so it is found out before leaving.
            if evaluated and (not leaving or config.train.keep_best):
                found = evaluate()
                _check_metric(config, found)
                log.pause(done, found)
                if found and config.train.keep_best:
                    patience = patience.seen(done, found[config.train.best_metric])
            best = bool(found) and config.train.keep_best > 0
            last = done == steps or patience.over
            if leaving or best or last or passed(config.train.checkpoint_every, before, done):
                log.flush()  # a state that is not finite is never saved
                save(wait=leaving)
                log.restart()
                found = found if last else {}
            if leaving:
                log.close()
                _say(
                    setup,
                    f"{preemption.received or 'a signal'}: saved step {done}; the same "
                    "command goes on from there.",
                )
                return Outcome(done, False, {})
        log.close(final=True)
        if patience.over:
            _say(setup, f"Stopped early, at step {done} of {steps}: {patience.why()}.")
        if done == first and held_out is not None:  # nothing was left to do
            found = evaluate()
    return Outcome(done, True, found)


def passed(every: int, before: int, done: int) -> bool:
    """Whether a multiple of `every` lies in (before, done]; 0 = never."""
    return every > 0 and done // every > before // every


def _begin(job: _Job, data: Data, held_out: Data | None):
    """(state, reference parameters or None, data and held-out data with their references, what is
    left of the patience)."""
    setup, objective, functions, manager, workdir, _, inputs = job
    config = setup.config
    patience = stopping.Patience.of(config.train)
    reference = setup_lib.reference_directory(setup)
    reader = setup_lib.reference_setup(setup)
    mode = setup_lib.reference(config, objective)
    params = None
    if manager.latest() is None:
        params = setup_lib.load(setup)
    if mode == "cache":
        store = passes.reference_store(setup, setup_lib.cache_directory(config, workdir))

        def load():
            if params is None or reference != setup.directory:
                return setup_lib.load(reader, reference)
            return params if reader is setup else adapters.without(params)

        for part in (data, held_out):
            if part is not None:
                passes.fill_references(reader, store, part.source, load, rows=part.plan.rows)
        data = data._replace(references=store)
        held_out = held_out and held_out._replace(references=store)
    moves = functions.state.ref is not None  # then a checkpoint holds it
    from_files = mode == "step" and (params is not None or not moves)
    if from_files and moves and setup.adapter:  # the leaves again: those in params are donated
        ref_params = setup_lib.adapter_leaves(setup, params)
    else:
        ref_params = setup_lib.reference_params(setup) if from_files else None
    if params is not None:
        state = functions.start(params)
        if moves:
            state, ref_params = state._replace(ref=ref_params), None
    else:
        state, position = manager.restore(_saved(functions.state))
        patience = patience.restored(position.pop("patience", {}))
        now = {"step": position["step"], **_inputs(setup, data), **inputs}
        changed = config_lib.differences(position, now)
        if changed:
            raise ValueError(
                f"The work directory {workdir} was trained on other inputs than its config names "
                f"now: {'; '.join(changed)}. Put them back, or take a new --workdir."
            )
        if setup.adapter:
            base = setup_lib.load(setup.base)
            state = state._replace(params=adapters.insert(base, state.params))
        _say(setup, f"Resuming at step {manager.latest()}.")
    return state, ref_params, data, held_out, patience


def _evaluate(setup, objective, functions, state, ref_params, data: Data) -> dict[str, float]:
    """Means over the held-out rows."""
    totals: dict[str, float] = {}
    batches = setup_lib.batches(
        setup,
        data.source,
        data.plan,
        stop=data.plan.steps_per_epoch,
        references=data.references,
        spans=objective.spans,
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


def _flops(setup: setup_lib.Setup, data: Data, step: int) -> float:
    """Of a forward pass over the rows of a step, of all processes."""
    _, rows = data.plan(step)
    rows, index = rows[rows >= 0], data.source.index
    prompt = index["prompt_lengths"][rows].mean()
    response = index["response_lengths"][rows].mean()
    images, cells = index["images"][rows].mean(), index["cells"][rows].mean()
    return setup.vlm.flops(setup.layout, prompt, response, images, cells) * len(rows)


def _saved(state: step_lib.State) -> step_lib.State:
    """What a checkpoint holds of a state: with an adapter not its base, which never changes."""
    leaves, (_, heads) = adapters.extract(state.params), heads_lib.split(state.params)
    if not leaves:
        return state
    return state._replace(params={**leaves, heads_lib.FOLDER: heads} if heads else leaves)


def _inputs(setup: setup_lib.Setup, data: Data) -> dict[str, str]:
    """What a run may not change under way: keys of the prepared data and of the reference, and of
    the base where checkpoints hold an adapter alone."""
    references = data.references.model if data.references else ""
    found = {"data": pathlib.Path(data.source.prepared.directory).name, "reference": references}
    return found | ({"base": setup.start} if setup.adapter else {})


def _check_metric(config: config_lib.Config, found: dict[str, float]) -> None:
    name = config.train.best_metric
    if config.train.keep_best and found and name not in found:
        raise ValueError(
            f"config.train.best_metric is {name!r}; it must be {config_lib.one_of(name, found)}"
        )


def has_saved(workdir: str) -> bool:
    """Whether the work directory holds a complete checkpoint of any run."""
    return any(path.name.isdigit() for path in pathlib.Path(workdir, "checkpoints").glob("*"))


def _check_labels(objective: objectives.Objective, source: loading.Source, path: str) -> None:
    """What an objective needs of the data must be there before the first step."""
    counts, names = source.prepared.counts, source.prepared.axes
    if objective.needs_rewards and counts.unrewarded:
        raise ValueError(
            f"The objective reads reward vectors, but {counts.unrewarded} of {counts.kept} rows of "
            f"{path} lack a reward on some axis of config.data.axes. Add them as chosen_rewards "
            "and rejected_rewards, or take an objective without rewards."
        )
    _check_spans(objective, counts, path)
    if not objective.needs_axis:
        return
    axis, number = source.index["axis"], source.index["number"]
    if len(names) > 1 and (axis < 0).any():
        raise ValueError(
            f"{path}:{number[np.argmax(axis < 0)]}: axis: missing in {(axis < 0).sum()} of "
            f"{counts.kept} rows. The objective needs the axis that ordered each pair; it must be "
            f"one of {', '.join(names)}."
        )
    by_number = np.zeros(number.max() + 1, np.int32)  # so that errors count rows as the file does
    by_number[number] = np.maximum(axis, 0)
    real = np.zeros(len(by_number), np.float32)
    real[number] = 1.0
    rewards = np.zeros((len(by_number), 1, len(names)), np.float32)
    stated = None
    if counts.copies:  # of a row's copies the least weights
        stated = np.full((len(by_number), len(names)), np.inf, np.float32)
        np.minimum.at(stated, number, source.index["preference"])
    labels = types.Labels(rewards, weight=real, margin=real, axis=by_number, preference=stated)
    try:
        objective.check(labels)
    except ValueError as error:
        axes = ", ".join(f"{i} {name}" for i, name in enumerate(names))
        raise ValueError(f"{path}: axis: {error} The axes are {axes}.") from error


def _check_spans(objective: objectives.Objective, counts: encoding.Counts, path: str) -> None:
    for name in objective.spans:
        if name not in counts.spans:
            found = ", ".join(map(repr, counts.spans)) or "none"
            raise ValueError(
                f"The objective weighs tokens by spans named {name!r}, but no row of {path} has "
                f"any (found: {found}). Add them as chosen_spans and rejected_spans, or take the "
                "modifier `spans` away."
            )
    unread = [name for name in counts.spans if name not in objective.spans]
    if unread:
        logging.warning(
            "%s: no term weighs tokens by spans named %s; the modifier `spans` makes one do so.",
            path,
            ", ".join(map(repr, unread)),
        )


def check_best(config: config_lib.Config) -> None:
    if config.train.patience and not config.train.keep_best:
        raise ValueError(
            "config.train.patience stops a run after its best checkpoint, which "
            "config.train.keep_best = 0 does not keep; set it to 1."
        )
    if config.train.keep_best and not (config.data.eval_path and config.train.eval_every):
        raise ValueError(
            "config.train.keep_best needs held-out data and evaluations to rank checkpoints by: "
            "set config.data.eval_path and config.train.eval_every."
        )


def _say(setup: setup_lib.Setup, text: str) -> None:
    if setup.is_writer:
        print(text, file=sys.stderr, flush=True)
