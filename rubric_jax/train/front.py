"""A front: W policies trained at once by one compiled step, each under numbers of its own.

What differs between them are traced numbers of one objective: weights over axes, betas, weights of
terms. Whatever trains has a leading axis W (parameters, moments, running baselines); frozen
parameters, the batch and the reference are there once. Every policy steps as it would alone.

  front.run(config, {"even": {"modpo": {**PAIR, "weights": [0.5, 0.5]}},
                     "first": {"modpo": {**PAIR, "weights": [0.9, 0.1]}}}, workdir)

  WORKDIR/config.json                      the config; `objective` holds one for each policy
  WORKDIR/even/policy/  first/policy/      Hugging Face directories
  WORKDIR/even/metrics.jsonl  first/...    training curves

W policies take W times the memory of one, for parameters and moments; see `compile_functions` for
activations. Nothing is saved under way: a front that was killed starts over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from rubric_jax import checkpoint, metrics, objectives, paths, sharding, types
from rubric_jax import config as config_lib
from rubric_jax.data import loading
from rubric_jax.models import head_files, weights
from rubric_jax.models import heads as heads_lib
from rubric_jax.train import loop, optimizer, passes
from rubric_jax.train import setup as setup_lib
from rubric_jax.train import step as step_lib

Params = types.Params


class Functions(NamedTuple):
    """The compiled parts of a front."""

    start: Callable  # params -> stacked state
    step: Callable  # (stacked state, batch, knobs [W, ...], ref_params) -> (state, metrics [W])
    schedule: Callable  # step -> learning rate
    axes: step_lib.State  # per leaf of the state: 0 = stacked, None = there once


def stack(members: Sequence[objectives.Objective]) -> dict[str, Any]:
    """The knobs of objectives that differ in numbers alone, each with a leading axis W.

    ValueError if they do not have the same terms, branches, choices and modifiers.
    """
    if not members:
        raise ValueError("A front needs at least one objective.")
    for i, member in enumerate(members):
        if member.terms != members[0].terms or member.axes != members[0].axes:
            raise ValueError(
                f"Objective {i} of the front differs from the first in more than numbers: "
                f"{_shown(member)} against {_shown(members[0])}. Train it in a front of its own, "
                "or list all terms in every objective and give those to leave out the weight 0."
            )
    return jax.tree.map(lambda *numbers: np.stack(numbers), *(m.knobs for m in members))


def compile_functions(
    setup: setup_lib.Setup,
    objective: objectives.Objective,
    *,
    members: int,
    steps: int,
    turns: bool | None = None,
) -> Functions:
    """Jits the step of a front of so many members, with its shardings and a donated state.

    Args:
      objective: any of the front; its numbers are not read.
      members: W.
      steps: of the learning-rate schedule.
      turns: False: all members at once (`jax.vmap`), with W times the activations; what depends on
        nothing that trains, such as a frozen tower, is computed once. True: one member after the
        other inside the step (`jax.lax.map`), with the activations of one. None: in turns on CPU,
        where batched products are slow, and with cuDNN's attention; at once elsewhere.

    Raises:
      ValueError: all at once with config.model.attention "cudnn".
    """
    config, mesh = setup.config, setup.mesh
    trainable = optimizer.trainable(config.optimizer, setup.shapes)
    tx, schedule = optimizer.build(config.optimizer, paths.split(setup.shapes, trainable)[0], steps)
    init = functools.partial(
        step_lib.init, tx=tx, trainable=trainable, loss_state=objective.init_state()
    )
    shapes = jax.eval_shape(init, setup.shapes)
    axes = _axes(shapes, trainable)
    one, _ = sharding.place(mesh, setup.vlm.rules, shapes)
    places = jax.tree.map(lambda place, axis: _stacked(place, axis), one, axes)

    def start(params: Params) -> step_lib.State:
        return jax.tree.map(
            lambda leaf, axis: (
                leaf if axis is None else jnp.broadcast_to(leaf[None], (members, *leaf.shape))
            ),
            init(params),
            axes,
        )

    step = step_lib.make(
        setup_lib.task(setup, objective),
        tx,
        trainable,
        accumulate=config.train.accumulate,
        shards=sharding.data_shards(mesh),
    )
    cudnn = config.model.attention == "cudnn"  # jax's rule for vmap mixes up its masks
    if cudnn and turns is False:
        raise ValueError("A front with config.model.attention 'cudnn' must take turns.")
    turns = cudnn or mesh.devices.flat[0].platform == "cpu" if turns is None else turns
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    inside = setup_lib.reference(config, objective) == "step"
    return Functions(
        start=jax.jit(start, out_shardings=places),
        step=jax.jit(
            in_turns(step, axes)
            if turns
            else jax.vmap(step, in_axes=(axes, None, 0, None), out_axes=(axes, 0)),
            in_shardings=(places, rows, whole, setup.placement[0] if inside else None),
            out_shardings=(places, whole),
            donate_argnums=0,
        ),
        schedule=schedule,
        axes=axes,
    )


def in_turns(step: Callable, axes: step_lib.State) -> Callable:
    """The step of a front whose members take it one after the other: as `jax.vmap` of it would.

    Args:
      step: of one member, as step.make gives it.
      axes: per leaf of the state 0 = stacked, None = there once.
    """

    @functools.wraps(step)
    def run(state: step_lib.State, batch: types.Batch, knobs, ref_params):
        leaves, tree = jax.tree.flatten(state)
        stacked = [axis is not None for axis in tree.flatten_up_to(axes)]

        def one(given):
            own, knobs = given
            rest = iter(own)
            whole = [next(rest) if s else leaf for leaf, s in zip(leaves, stacked, strict=True)]
            new, metrics = step(tree.unflatten(whole), batch, knobs, ref_params)
            return [x for x, s in zip(tree.flatten_up_to(new), stacked, strict=True) if s], metrics

        own = [leaf for leaf, s in zip(leaves, stacked, strict=True) if s]
        own, metrics = jax.lax.map(one, (own, knobs))
        rest = iter(own)
        new = [next(rest) if s else leaf for leaf, s in zip(leaves, stacked, strict=True)]
        return tree.unflatten(new)._replace(step=state.step + 1), metrics

    return run


def member(params: Params, axes: Params, index: int) -> Params:
    """The parameters of one policy of a front; axes: `Functions.axes.params`."""
    return jax.tree.map(lambda leaf, axis: leaf if axis is None else leaf[index], params, axes)


def train(
    setup: setup_lib.Setup,
    functions: Functions,
    knobs: Mapping[str, Any],
    params: Params,
    batches: Iterable[tuple[types.Batch, Any]],
    ref_params: Params | None = None,
    *,
    report: Callable[[int, dict[str, np.ndarray]], None] = lambda step, values: None,
) -> Params:
    """Takes a step on every batch; returns the parameters [W, ...], frozen ones without W.

    Args:
      knobs: of `stack`.
      params: what every policy starts from.
      batches: this process's blocks of rows, as `setup.batches` yields them.
      ref_params: if the reference is computed in the step.
      report: takes (steps done, metrics [W]) of every step, once the next is under way.

    Raises FloatingPointError if a policy's loss or gradient is not finite.
    """
    state, pending = functions.start(params), None
    for done, (batch, _) in enumerate(batches, start=1):
        placed = sharding.put_batch(batch, setup.mesh)
        state, values = functions.step(state, placed, knobs, ref_params)
        if pending is not None:
            report(pending[0], _read(*pending))
        pending = done, values
    if pending is not None:
        report(pending[0], _read(*pending))
    return state.params


def run(
    config: config_lib.Config, weightings: Mapping[str, Mapping[str, Any]], workdir: str
) -> dict[str, pathlib.Path]:
    """Trains a policy for every weighting on config.data; returns their Hugging Face directories.

    Policies that are there already are not trained again.

    Args:
      config: of a training run; its own objective is not read.
      weightings: objectives, as config.objective has them, by the name of the policy.
      workdir: see the module.

    Raises ValueError on a name that is no folder, on objectives that differ in more than numbers,
    and where a run would.
    """
    for name in weightings:
        if not re.fullmatch(r"\w[\w.,+=-]*", name):
            raise ValueError(
                f"The weighting {name!r} names a folder: take letters, digits and any of _.,+=-"
            )
    configs = [dataclasses.replace(config, objective=w) for w in weightings.values()]
    members = [setup_lib.objective(one) for one in configs]
    if any(setup_lib.refresh(config, one) for one in members):
        raise ValueError(
            "config.train.refresh moves the reference with the policy, and the policies of a front "
            "share one reference. Set it to 0, or train them one by one."
        )
    knobs = stack(members)
    plain = config_lib.to_dict(config) | {"objective": dict(weightings)}
    folders = {name: pathlib.Path(workdir) / name / "policy" for name in weightings}
    checkpoint.claim(workdir, plain, force=not any(f.exists() for f in folders.values()))
    if all(folder.exists() for folder in folders.values()):
        return folders
    setup = setup_lib.build(configs[0])
    cache = setup_lib.cache_directory(config, workdir)
    source = setup_lib.source(setup, config.data.path, config.data.split, cache)
    for one in members:
        loop._check_labels(one, source, config.data.path)
    plan = setup_lib.plan(setup, source, shuffle=True)
    steps = config.train.steps or math.ceil(config.train.epochs * plan.steps_per_epoch)
    functions = compile_functions(setup, members[0], members=len(members), steps=steps)
    with jax.set_mesh(setup.mesh):
        params, ref_params, references = _begin(setup, members[0], source, cache)
        batches = setup_lib.batches(
            setup, source, plan, stop=steps, references=references, spans=members[0].spans
        )
        curves = _Curves(setup, list(weightings), workdir, functions.schedule, steps)
        with contextlib.closing(curves):
            params = train(
                setup, functions, knobs, params, batches, ref_params, report=curves.report
            )
        for i, folder in enumerate(folders.values()):
            _write(setup, member(params, functions.axes.params, i), folder)
    return folders


def _begin(setup, objective, source: loading.Source, cache: str):
    """(parameters to start from, reference parameters or None, stored references or None)."""
    if setup.adapter:
        raise ValueError(
            "config.model.adapter is set, but a front trains whole parameters, one set for each "
            "weighting; leave it empty, or train the weightings one by one."
        )
    mode, params = setup_lib.reference(setup.config, objective), setup_lib.load(setup)
    reference = setup_lib.reference_directory(setup)
    if mode == "none":
        return params, None, None

    def load():
        return params if reference == setup.directory else setup_lib.load(setup, reference)

    if mode == "step":
        return params, load(), None
    store = passes.reference_store(setup, cache)
    rows = setup_lib.plan(setup, source, shuffle=True).rows
    passes.fill_references(setup, store, source, load, rows=rows)
    return params, None, store


def _write(setup: setup_lib.Setup, params: Params, folder: pathlib.Path) -> None:
    """Writes a policy for transformers; the folder appears whole."""
    host = sharding.to_host(params)
    if setup.is_writer:
        part = folder.with_name("policy.part")
        with checkpoint.disk_errors(str(folder)):
            host, heads = heads_lib.split(host)
            weights.write(part, host, setup.vlm.weights, source=setup.directory)
            spec = head_files.of_checkpoint(setup.directory, setup.config.model.heads)
            head_files.write(part, heads, spec)
            os.replace(part, folder)
    setup_lib.barrier()


class _Curves:
    """metrics.jsonl of every policy: means over the steps between two lines."""

    def __init__(self, setup, names: list[str], workdir: str, schedule, steps: int):
        config = setup.config
        self._every, self._steps, self._schedule = config.train.log_every, steps, schedule
        self._names, self._window = names, []
        self._writers = [
            metrics.Writer(
                str(pathlib.Path(workdir) / name),
                tensorboard=config.train.tensorboard,
                wandb_project=config.train.wandb_project,
                config=config_lib.to_dict(config),
                is_writer=setup.is_writer,
                step=0,
            )
            for name in names
        ]
        title = f"train {len(names)} policies"
        self._bar = tqdm.tqdm(total=steps, desc=title, disable=not setup.is_writer)

    def close(self) -> None:
        self._bar.close()
        for writer in self._writers:
            writer.close()

    def report(self, step: int, values: dict[str, np.ndarray]) -> None:
        self._bar.update()
        self._window.append(values)
        if step % self._every and step != self._steps:
            return
        names = values.keys() - {"rows", "tokens"}  # counts, and the same for all
        means = {name: np.mean([v[name] for v in self._window], axis=0) for name in sorted(names)}
        self._window.clear()
        for i, writer in enumerate(self._writers):
            row = {name: float(mean[i]) for name, mean in means.items()}
            writer.write(step, row | {"learning_rate": float(self._schedule(step - 1))})


def _read(step: int, values) -> dict[str, np.ndarray]:
    """Metrics on the host; FloatingPointError names the policies that are not finite."""
    read = sharding.to_host(values)
    finite = np.all([np.isfinite(read[n]) for n in ("loss", "grad_norm", "update_norm")], axis=0)
    if not finite.all():
        raise FloatingPointError(
            f"Step {step}: the loss or the gradient of policies {np.flatnonzero(~finite).tolist()} "
            f"of the front is not finite (losses {read['loss'].tolist()}); lower the learning "
            "rate, or look at their numbers."
        )
    return read


def _axes(state: step_lib.State, trainable) -> step_lib.State:
    """Per leaf the axis that counts policies: 0, or None where all share it."""
    zero = functools.partial(jax.tree.map, lambda _: 0)
    params = jax.tree.map(lambda trains: 0 if trains else None, trainable)
    return step_lib.State(None, params, zero(state.opt_state), zero(state.loss_state))


def _stacked(place: jax.sharding.NamedSharding, axis: int | None) -> jax.sharding.NamedSharding:
    if axis is None:
        return place
    spec = jax.sharding.PartitionSpec(None, *place.spec) if len(place.spec) else place.spec
    return jax.sharding.NamedSharding(place.mesh, spec)


def _shown(objective: objectives.Objective) -> str:
    return "; ".join(
        f"{term.entry} ({term.name}, {dict(term.static)}, around it {dict(term.modifiers)})"
        for term in objective.terms
    )
