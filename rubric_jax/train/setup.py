"""What a run is made of, built from its config before any weight is read."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jax.experimental import multihost_utils

from rubric_jax import config as config_lib
from rubric_jax import models, objectives, sharding, types
from rubric_jax.data import (
    conditioning,
    corruptions,
    loading,
    ordering,
    preparing,
    processing,
    rated,
    spans,
)
from rubric_jax.models import head_files, weights
from rubric_jax.models import heads as heads_lib
from rubric_jax.models import vlm as vlm_lib
from rubric_jax.train import step as step_lib


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """A config with its names bound: model, processor, layout, mesh. Holds no parameters."""

    config: config_lib.Config
    directory: pathlib.Path  # of the policy's checkpoint
    vlm: vlm_lib.VLM
    processor: processing.Processor
    layout: types.Layout
    mesh: jax.sharding.Mesh

    @property
    def is_writer(self) -> bool:
        """Whether this process writes files that all share."""
        return jax.process_index() == 0

    @functools.cached_property
    def shapes(self) -> types.Params:
        """Shapes and dtypes of the parameters."""
        dtype = jnp.dtype(self.config.model.param_dtype)
        found = jax.eval_shape(self.vlm.init, jax.random.key(0))
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), found)

    @functools.cached_property
    def placement(self) -> tuple[types.Params, list[str]]:
        """Where each parameter lives on the mesh, and what could not be cut as the rules ask."""
        return sharding.place(self.mesh, self.vlm.rules, self.shapes)


def build(config: config_lib.Config) -> Setup:
    """Binds the names of a config. ValueError names the field that is wrong."""
    layout = types.Layout.of(config.data.branches)
    sharding.initialize(config.mesh)
    directory = models.directory(config.model.checkpoint)
    model = config.model
    heads = head_files.of_checkpoint(directory, model.heads)
    vlm = models.build(model.family, directory, dtype=model.dtype, remat=model.remat)
    return Setup(
        config=config,
        directory=directory,
        vlm=heads_lib.attach(vlm, heads),
        processor=processing.load(str(directory)),
        layout=layout,
        mesh=sharding.make(config.mesh),
    )


def objective(config: config_lib.Config) -> objectives.Objective:
    """The objective of a config, checked against its branches and axes."""
    layout = types.Layout.of(config.data.branches)
    corruptions.bind(config.data.contexts, layout)
    conditioning.bind(config.data.weights, layout, config.data.axes)
    spans.check_differences(config.data.differences, layout)
    ordering.check(config.data)
    rated.bind(config.data.rated, config.data.axes)
    heads = heads_lib.shapes(config.model.heads)
    built = objectives.build(config.objective, layout, config.data.axes, heads)
    if built.needs_reference and config.train.reference == "none":
        names = ", ".join(term.entry for term in built.terms)
        raise ValueError(
            f"The objective ({names}) reads a reference, but config.train.reference is 'none'; "
            "set it to 'cache' or 'step'."
        )
    _check_sampling(config, built)
    if built.needs_kl and config.train.reference != "step":
        raise ValueError(
            "The objective reads a token KL to the reference over the whole vocabulary, which is "
            f"computed in the step, but config.train.reference is {config.train.reference!r}; set "
            "it to 'step'."
        )
    if built.needs_preference and not config.data.weights:
        raise ValueError(
            "The objective weighs axes as the prompts state it (weights 'prompt'), but the prompts "
            "state nothing; set config.data.weights, such as {'draw': 'dirichlet'}."
        )
    if reference(config, built) == "cache" and corruptions.in_step(config.data.contexts, layout):
        raise ValueError(
            "config.data.contexts has pictures that are drawn anew in every step ('when': 'step'), "
            "to which no stored log-probabilities belong, but config.train.reference is 'cache'; "
            "set it to 'step', or make the pictures once with 'when': 'data'."
        )
    if refresh(config, built) and config.train.reference != "step":
        raise ValueError(
            f"config.train.refresh is {config.train.refresh}: a reference that moves is computed "
            f"in the step, but config.train.reference is {config.train.reference!r}, whose "
            "log-probabilities are those of one checkpoint. Set it to 'step', or refresh to 0."
        )
    of_reference = [name for name in built.heads if heads[name].reference]
    if of_reference and config.train.reference != "step":
        raise ValueError(
            f"The objective reads the head(s) {', '.join(of_reference)} on the reference's hidden "
            f"states, but config.train.reference is {config.train.reference!r}; set it to 'step'."
        )
    return built


def refresh(config: config_lib.Config, objective: objectives.Objective) -> step_lib.Refresh | None:
    """How the reference moves in training; None if it stays, or nothing reads it."""
    train = config.train
    if not train.refresh or not objective.needs_reference:
        return None
    return step_lib.Refresh(train.refresh, train.refresh_mixup)


def _check_sampling(config: config_lib.Config, built: objectives.Objective) -> None:
    online = config.online.updates > 0
    if online and built.needs_reference and config.train.reference == "cache":
        raise ValueError(
            "config.online.updates samples in every step, so no reference can be stored in "
            "advance; set config.train.reference to 'step'."
        )
    wrong = "reference" if online else "sampler"
    for entry, behaviour in built.behaviours.items():
        if behaviour == wrong:
            raise ValueError(
                f"config.objective.{entry}.behaviour is {wrong!r}, and config.online.updates is "
                f"{config.online.updates}: with samples in every step it must be 'sampler' (or "
                "'policy'), on stored ones 'reference' (or 'policy')."
            )


def reference(config: config_lib.Config, objective: objectives.Objective) -> str:
    """Where reference log-probabilities come from: config.train.reference, "none" if not read."""
    return config.train.reference if objective.needs_reference else "none"


def reference_directory(setup: Setup) -> pathlib.Path:
    """The reference's checkpoint; ValueError if it is not of the policy's architecture."""
    model = setup.config.model
    return alike(setup, model.reference or model.checkpoint, "config.model.reference")


def alike(setup: Setup, checkpoint: str, field: str) -> pathlib.Path:
    """The directory of a checkpoint that the policy's functions can read; else ValueError."""
    model, directory = setup.config.model, models.directory(checkpoint)
    if directory != setup.directory:
        other = models.build(model.family, directory, dtype=model.dtype, remat=model.remat)
        if other.config != setup.vlm.config:
            raise ValueError(
                f"{field} {directory} has another architecture than "
                f"{setup.directory}: {other.config} against {setup.vlm.config}. Only checkpoints "
                "with equal configurations can serve as reference."
            )
    return directory


def cache_directory(config: config_lib.Config, workdir: str) -> str:
    """Where prepared data and reference log-probabilities live."""
    return config.data.cache or os.path.join(workdir, "cache")


def source(setup: Setup, path: str, split: str, cache: str) -> loading.Source:
    """Prepares data if it is new, and opens it."""
    if not path:
        raise ValueError("config.data.path is empty; point it at preference data.")
    prepared = preparing.prepare(
        setup.config.data,
        setup.layout,
        setup.processor,
        path=path,
        split=split,
        cache_dir=cache,
        is_writer=setup.is_writer,
        wait=barrier,
    )
    return loading.open(prepared)


def plan(setup: Setup, data: loading.Source, *, shuffle: bool, rows=None) -> loading.Plan:
    """Batches for training (shuffled, cut for accumulation) or for one pass in input order.

    Training visits the rows of config.data.view, by config.data.curriculum; a pass visits `rows`,
    all by default.
    """
    train, shards = setup.config.train, sharding.data_shards(setup.mesh)
    phases = None
    if shuffle:
        rows = ordering.rows(data.prepared, setup.config.data)
        phases = ordering.phases(data.prepared, setup.config.data, rows)
    parts = train.accumulate if shuffle else 1
    size = train.batch_size
    if not shuffle:  # passes keep no gradients: a microbatch is what fits, and all shards take part
        size = -(-train.batch_size // (train.accumulate * shards)) * shards
    return loading.plan(
        data,
        batch_size=size,
        groups=shards * parts,
        buckets=setup.config.data.buckets,
        seed=setup.config.data.seed,
        shuffle=shuffle,
        rows=rows,
        phases=phases,
    )


def batches(setup: Setup, data: loading.Source, plan: loading.Plan, **kwargs):
    """This process's batches of a plan; see loading.batches."""
    index, count = sharding.process_block(setup.mesh)
    return loading.batches(
        data,
        plan,
        setup.vlm.media,
        process=index,
        processes=count,
        workers=setup.config.data.workers,
        prefetch=setup.config.data.prefetch,
        **kwargs,
    )


def step_ends(setup: Setup, text: str) -> np.ndarray:
    """Which tokens hold this text: bool [V]. ValueError if none does."""
    tokenizer = setup.processor.hf.tokenizer
    texts = tokenizer.batch_decode([[i] for i in range(min(len(tokenizer), setup.vlm.vocab))])
    found = np.zeros(setup.vlm.vocab, bool)
    found[: len(texts)] = [text in token for token in texts]
    if not found.any():
        raise ValueError(
            f"The objective reads steps that end with {text!r}, but no token holds that; give its "
            "knob `ends` a text of one token, such as a line break or a full stop."
        )
    return found


def load(setup: Setup, directory: pathlib.Path | None = None) -> types.Params:
    """Reads a checkpoint (the policy's by default) onto the mesh; heads that it lacks are new."""
    directory = directory or setup.directory
    shapes, heads = heads_lib.split(setup.shapes)
    places, heads_places = heads_lib.split(setup.placement[0])
    params = weights.load(
        directory,
        setup.vlm.weights,
        shapes,
        dtype=jnp.dtype(setup.config.model.param_dtype),
        shardings=places,
        progress=setup.is_writer,
    )
    if setup.vlm.heads:
        seed = setup.config.seed
        params[heads_lib.FOLDER] = head_files.load(
            directory, setup.vlm, heads, seed=seed, shardings=heads_places
        )
    return params


def draw(setup: Setup) -> Callable[[types.Batch, jax.Array | None], types.Batch]:
    """What a step does to the pictures of contexts with 'when': 'step'; see Task.draw."""
    contexts = corruptions.in_step(setup.config.data.contexts, setup.layout)
    if not contexts:
        return lambda batch, done: batch
    grey = [PIL.Image.new("RGB", (64, 64), level) for level in ("black", "white")]
    edges = [setup.processor.pixels(image)[0, 0] for image in grey]
    return functools.partial(corruptions.drawn.apply, contexts, *edges)


def task(setup: Setup, objective: objectives.Objective | None) -> step_lib.Task:
    """What a step or a pass of this run is made of."""
    steps = objective.steps if objective is not None else None
    ends = step_ends(setup, steps[0]) if steps else None
    chunk = setup.config.model.logps_chunk
    return step_lib.Task(setup.vlm, setup.layout, objective, chunk, draw(setup), ends)


def pass_function(setup: Setup, function: Callable = step_lib.branch_logps) -> Callable:
    """Jitted: (params, batch) -> a tree of [B, ...]; by default token log-probabilities [B, N, T].

    function takes (task, params, batch).
    """
    rows = sharding.batch_sharding(setup.mesh)
    return jax.jit(
        functools.partial(function, task(setup, None)),
        in_shardings=(setup.placement[0], rows),
        out_shardings=rows,
    )


def abstract(shapes, shardings):
    """Shapes with their shardings, as a checkpoint is restored onto."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings,
    )


def agreed(flag: bool) -> bool:
    """What the first process says, on all."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


def barrier() -> None:
    """Waits for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("rubric_jax")
