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
from rubric_jax import models, objectives, paths, sharding, types
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
from rubric_jax.models import adapter_files, adapters, head_files, quantised, weights
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
    adapter: adapters.Adapter | None = None  # among the parameters of `vlm`
    bare: vlm_lib.VLM | None = None  # with an adapter: the model without it
    plain: vlm_lib.VLM | None = None  # over a quantised base: the model as its checkpoint has it

    @property
    def is_writer(self) -> bool:
        """Whether this process writes files that all share."""
        return jax.process_index() == 0

    @functools.cached_property
    def shapes(self) -> types.Params:
        """Shapes and dtypes of the parameters."""
        dtype = jnp.dtype(self.config.model.param_dtype)
        found = jax.eval_shape(self.vlm.init, jax.random.key(0))

        def shape(path: str, leaf) -> jax.ShapeDtypeStruct:
            # float32: an adapter's updates are small. Codes have a dtype of their own.
            kept = adapters.is_adapter(path) or quantised.is_code(path)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype if kept else dtype)

        return paths.map_named(shape, found)

    @functools.cached_property
    def placement(self) -> tuple[types.Params, list[str]]:
        """Where each parameter lives on the mesh, and what could not be cut as the rules ask."""
        return sharding.place(self.mesh, self.vlm.rules, self.shapes)

    @functools.cached_property
    def start(self) -> str:
        """Digest of what training starts from; reads every byte of the checkpoint."""
        return fingerprint(self)

    @functools.cached_property
    def base(self) -> Setup:
        """The same without an adapter."""
        if self.adapter is None:
            return self
        return dataclasses.replace(self, vlm=self.bare, adapter=None, bare=None)


def build(config: config_lib.Config) -> Setup:
    """Binds the names of a config. ValueError names the field that is wrong."""
    layout = types.Layout.of(config.data.branches)
    sharding.initialize(config.mesh)
    directory = models.directory(config.model.checkpoint)
    model = config.model
    heads = head_files.of_checkpoint(directory, model.heads)
    vlm = _vlm(model, directory)
    adapter = adapter_files.open_adapter(model.adapter, vlm)
    if model.quantise and adapter and adapter.dora:
        raise ValueError(
            "config.model.adapter.dora learns norms of kernels, which config.model.quantise = "
            f"{model.quantise!r} does not keep; take LoRA, or set quantise to ''."
        )
    plain = vlm if model.quantise else None
    vlm = quantised.quantise(vlm, model.quantise) if model.quantise else vlm
    vlm = heads_lib.attach(vlm, heads)
    return Setup(
        config=config,
        directory=directory,
        vlm=adapters.adapt(vlm, adapter) if adapter else vlm,
        adapter=adapter,
        bare=vlm if adapter else None,
        plain=plain,
        processor=processing.load(str(directory), config.data.pixels, config.data.fps),
        layout=layout,
        mesh=sharding.make(config.mesh),
    )


def objective(config: config_lib.Config) -> objectives.Objective:
    """The objective of a config, checked against its branches and axes."""
    if config.model.quantise and not config.model.adapter:
        raise ValueError(
            f"config.model.quantise is {config.model.quantise!r}, and kernels in few bits cannot "
            "train; set config.model.adapter, or quantise to ''."
        )
    layout = types.Layout.of(config.data.branches)
    corruptions.bind(config.data.contexts, layout)
    conditioning.bind(config.data.weights, layout, config.data.axes)
    spans.check_differences(config.data.differences, layout)
    ordering.check(config.data)
    rated.bind(config.data.rated, config.data.axes)
    heads = heads_lib.shapes(config.model.heads)
    built = objectives.build(config.objective, layout, config.data.axes, heads)
    if built.steps and not built.steps[0]:
        raise ValueError(
            "The knob `ends` of a term that reads steps is empty; give the text that ends a step, "
            "such as a line break."
        )
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
    if refresh(config, built) and config.model.adapter:
        _check_moving(config)
    of_reference = [name for name in built.heads if heads[name].reference]
    if of_reference and config.train.reference != "step":
        raise ValueError(
            f"The objective reads the head(s) {', '.join(of_reference)} on the reference's hidden "
            f"states, but config.train.reference is {config.train.reference!r}; set it to 'step'."
        )
    return built


def _check_moving(config: config_lib.Config) -> None:
    """Under an adapter what moves are the adapter's leaves in the reference."""
    model, train = config.model, config.train
    if model.reference not in ("", model.checkpoint):
        raise ValueError(
            f"config.train.refresh is {train.refresh}: under config.model.adapter the reference "
            "becomes the policy's base with its adapter, but config.model.reference names another "
            "checkpoint. Leave that empty, or set refresh to 0."
        )
    if train.refresh_mixup != 1:
        raise ValueError(
            f"config.train.refresh_mixup is {train.refresh_mixup}: a mean of two adapters' factors "
            "is not the adapter of the mean. Under config.model.adapter set it to 1."
        )


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
    if online and built.spans:
        raise ValueError(
            "The objective weighs tokens by spans, which fresh samples do not have; take the "
            "modifier `spans` out of config.objective, or set config.online.updates to 0."
        )
    if online and built.needs_preference:
        raise ValueError(
            "The objective weighs axes as the prompts state it (weights 'prompt'), which has no "
            "place where every step samples; give the weights as numbers, or set "
            "config.online.updates to 0."
        )
    wrong = "reference" if online else "sampler"
    for entry, behaviour in built.behaviours.items():
        if behaviour == wrong:
            raise ValueError(
                f"config.objective.{entry}.behaviour is {wrong!r}, and config.online.updates is "
                f"{config.online.updates}: with samples in every step it must be 'sampler' (or "
                "'policy'), on stored ones 'reference' (or 'policy')."
            )
        if online and behaviour == "sampler" and config.data.eval_path:
            raise ValueError(
                f"config.objective.{entry}.behaviour is 'sampler', but nobody sampled the held-out "
                "rows of config.data.eval_path in the step. Set behaviour to 'policy', or leave "
                "eval_path empty and measure rewards on new samples: config.pool.eval_path and "
                "config.evaluation."
            )


def reference(config: config_lib.Config, objective: objectives.Objective) -> str:
    """Where reference log-probabilities come from: config.train.reference, "none" if not read."""
    return config.train.reference if objective.needs_reference else "none"


def _vlm(model: config_lib.Model, directory: pathlib.Path) -> vlm_lib.VLM:
    compute = {"dtype": model.dtype, "remat": model.remat, "attention": model.attention}
    return models.build(model.family, directory, **compute)


def reference_directory(setup: Setup) -> pathlib.Path:
    """The reference's checkpoint; ValueError if it is not of the policy's architecture."""
    model = setup.config.model
    return alike(setup, model.reference or model.checkpoint, "config.model.reference")


def alike(setup: Setup, checkpoint: str, field: str) -> pathlib.Path:
    """The directory of a checkpoint that the policy's functions can read; else ValueError."""
    model, directory = setup.config.model, models.directory(checkpoint)
    if directory != setup.directory:
        other = _vlm(model, directory)
        if other.config != setup.vlm.config:
            raise ValueError(
                f"{field} {directory} has another architecture than "
                f"{setup.directory}: {other.config} against {setup.vlm.config}. Only checkpoints "
                "with equal configurations can serve as reference."
            )
    return directory


def reference_setup(setup: Setup) -> Setup:
    """The setup under which the reference is read: with the adapter that the run starts from, if
    the reference is the policy at the start; of the bare checkpoint otherwise."""
    start = setup.adapter.start if setup.adapter else ""
    return setup if start and is_own_reference(setup) else setup.base


def is_own_reference(setup: Setup) -> bool:
    """Whether the reference is the policy's own base, under the adapter that it starts with."""
    return setup.adapter is not None and reference_directory(setup) == setup.directory


def reference_placement(setup: Setup) -> types.Params:
    """Where `reference_params` live."""
    if is_own_reference(setup):
        return adapters.extract(reference_setup(setup).placement[0])
    return setup.base.placement[0]


def reference_params(setup: Setup) -> types.Params:
    """What a step that computes the reference is given: its parameters, or, where the policy's own
    base serves, the leaves of the adapter that it started with ({} for a fresh one)."""
    reader = reference_setup(setup)
    if is_own_reference(setup):
        return adapter_leaves(reader, {})
    return load(reader, reference_directory(setup))


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

    `rows` are the ones to visit, all by default; training visits those of them that are in
    config.data.view, by config.data.curriculum.
    """
    train, shards = setup.config.train, sharding.data_shards(setup.mesh)
    phases = None
    if shuffle:
        view = ordering.rows(data.prepared, setup.config.data)
        rows = view if rows is None else np.intersect1d(view, rows)
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
    """Reads a checkpoint (the policy's by default) onto the mesh, under the setup's adapter; heads
    that it lacks are new."""
    directory, base = directory or setup.directory, setup.base
    shapes, heads = heads_lib.split(base.shapes)
    places, heads_places = heads_lib.split(base.placement[0])
    dtype, change = jnp.dtype(setup.config.model.param_dtype), lambda path, leaf: leaf
    if setup.plain is not None:
        own, kind, aims = quantised.sites(setup.plain), setup.config.model.quantise, places
        shapes = jax.eval_shape(setup.plain.init, jax.random.key(0))
        places, _ = sharding.place(setup.mesh, setup.plain.rules, shapes)

        def change(path: str, leaf: jax.Array):
            if path not in own:
                return leaf
            aim = functools.reduce(lambda tree, name: tree[name], path.split("/"), aims)
            encode = functools.partial(quantised.encode, own, kind, path)
            return jax.jit(encode, out_shardings=aim)(leaf)

    params = weights.load(
        directory,
        base.vlm.weights,
        shapes,
        dtype=dtype,
        shardings=places,
        progress=setup.is_writer,
        change=change,
    )
    if base.vlm.heads:
        seed = setup.config.seed
        params[heads_lib.FOLDER] = head_files.load(
            directory, base.vlm, heads, seed=seed, shardings=heads_places
        )
    return adapters.insert(params, adapter_leaves(setup, params)) if setup.adapter else params


def adapter_leaves(setup: Setup, base: types.Params) -> types.Params:
    """The leaves that the adapter starts with, on the mesh; {} without an adapter.

    base: its parameters, of which a fresh DoRA adapter reads the norms.
    """
    adapter, places = setup.adapter, adapters.extract(setup.placement[0])
    if adapter is None:
        return {}
    if adapter.start:
        host = adapter_files.read(adapter, setup.vlm.weights)
        return jax.tree.map(
            lambda leaf, place: jax.make_array_from_callback(
                leaf.shape, place, lambda index: leaf[index]
            ),
            host,
            places,
        )
    seen = base if adapter.dora else {}
    make = functools.partial(adapters.fresh, adapter)
    return jax.jit(make, out_shardings=places)(jax.random.key(setup.config.seed), seen)


def fingerprint(setup: Setup, directory: pathlib.Path | None = None) -> str:
    """Hex digest of a checkpoint's weights (the policy's by default) and of the adapter's start."""
    found = weights.fingerprint(directory or setup.directory, setup.vlm.weights)
    start = setup.adapter.start if setup.adapter else ""
    return f"{found}+{adapter_files.fingerprint(start)}" if start else found


def draw(setup: Setup) -> Callable[[types.Batch, jax.Array | None], types.Batch]:
    """What a step does to the pictures of contexts with 'when': 'step'; see Task.draw."""
    contexts = corruptions.in_step(setup.config.data.contexts, setup.layout)
    if not contexts:
        return lambda batch, done: batch
    grey = [PIL.Image.new("RGB", (64, 64), level) for level in ("black", "white")]
    edges = [setup.processor.picture(image).pixels[0, 0] for image in grey]
    return functools.partial(corruptions.drawn.apply, contexts, *edges)


def task(setup: Setup, objective: objectives.Objective | None) -> step_lib.Task:
    """What a step or a pass of this run is made of."""
    steps = objective.steps if objective is not None else None
    ends = step_ends(setup, steps[0]) if steps else None
    own = objective is not None and is_own_reference(setup)
    return step_lib.Task(
        vlm=setup.vlm,
        layout=setup.layout,
        objective=objective,
        logps_chunk=setup.config.model.logps_chunk,
        draw=draw(setup),
        step_ends=ends,
        reference=adapters.swap if own else None,
    )


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
