"""A run's configuration: frozen dataclasses, parsed once and strictly from a ConfigDict.

A config file returns plain values,

  def get_config():
      config = rubric_jax.config.default()        # every field below, ready for --config.x.y=value
      config.model.checkpoint = "path/to/llava"
      config.objective = {"dpo": {"weight": 1.0, "win": "chosen", "lose": "rejected", "beta": 0.1}}
      return config

and `build` turns it into a `Config`. An unknown key, a wrong type or a value out of range raises a
ValueError that names the field and the nearest match. Below the command line nothing sees a
ConfigDict.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import re
import types as python_types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import pydantic


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    family: str = "llava"
    checkpoint: str = ""  # Hugging Face directory (or hub name) with weights, tokenizer, processor
    reference: str = ""  # where the frozen reference comes from; "" = the same checkpoint
    dtype: str = "float32"  # of the computation: float32 or bfloat16
    param_dtype: str = "float32"  # of the parameters and the optimizer's moments
    # What the backward pass need not compute again. none: activations; dots: results of products;
    # full: inputs of layers and what attention gives. Scores of attention it always does.
    remat: str = "full"
    # auto: JAX's splash kernel on TPUs, where rows allow it (see models/attention.py), else plain;
    # plain: XLA; splash, cudnn (GPUs, in bfloat16): that kernel, or an error that says why not
    attention: str = "auto"
    logps_chunk: int = 128  # response positions per instance whose logits exist at a time
    quantise: str = ""  # int8 or nf4: the frozen decoder under an adapter in few bits; "" = off
    # Small modules on hidden states, trained with the model and read by terms:
    # {name: {head: kind, <knobs>}}, see models/heads.py
    heads: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # A low-rank adapter, which is then all that trains: {rank, alpha, targets, rank_stabilised,
    # dora, start}, see models/adapters.py; {} = none
    adapter: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    path: str = ""  # JSON Lines, JSON, Parquet, a saved `datasets` directory, or a hub name
    eval_path: str = ""  # the same, held out; "" = none
    split: str = "train"  # of a hub name or a saved DatasetDict
    eval_split: str = "test"
    cache: str = ""  # prepared records and reference log-probabilities; "" = WORKDIR/cache
    branches: tuple[str, ...] = ("chosen", "rejected")  # see types.Layout
    # Contexts whose pictures are made of a row's own: {context: {corruption: name, <knobs>}}, see
    # data/corruptions/
    contexts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Two responses; the words in which they differ are spans (docs/data.md) of rows without any
    differences: tuple[str, ...] = ()
    # Prompts that state weights of the reward axes: {draw: name, copies: 1, <knobs>}, see
    # data/conditioning.py
    weights: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    axes: tuple[str, ...] = ()  # names of the reward axes, in order; A = len(axes)
    # Rated lists to pairs: {pairs: best_vs_rest or best_vs_worst, weights: {axis: number}}, see
    # data/rated.py
    rated: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Order of an epoch, and part of the rows to train on: {by: gap or level, <knobs>}, see
    # data/ordering.py
    curriculum: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    view: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    max_prompt: int = 2048  # tokens, image tokens included; longer prompts are dropped and counted
    max_response: int = 1024  # tokens; longer responses are cut and counted
    buckets: int = 3  # padded shapes at most; each costs one compilation
    max_image_pixels: int = 50_000_000  # decoded width x height beyond which an image is refused
    # Least and most pixels of a picture after resizing, where families keep its shape; () = as the
    # checkpoint's processor says
    pixels: tuple[int, ...] = ()
    fps: float = 2.0  # frames per second of videos, where families place them in time
    confine_images: bool = False  # refuse image paths that leave the data file's directory
    workers: int = 0  # loader processes; 0 = load in the training process
    prefetch: int = 2  # batches ready ahead of the step (per worker)
    seed: int = 0  # of the shuffle


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    name: str = "adamw"  # adamw, adafactor, lion, muon
    learning_rate: float = 1e-6
    schedule: str = "cosine"  # constant, linear, cosine
    warmup: float = 0.03  # share of the steps
    end: float = 0.0  # final learning rate as a share of the peak
    knobs: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # passed to optax: b1, b2, ...
    clip: float = 1.0  # global gradient norm; 0 = no clipping
    weight_decay: float = 0.0
    # Ordered (regex over parameter paths, value); the first match wins.
    decay: tuple = ((r".*/(kernel|lora_a|lora_b)", 1.0), (r".*", 0.0))  # multiplier of weight_decay
    scale: tuple = ((r".*", 1.0),)  # multiplier of the learning rate
    # False = frozen: no gradient, no optimizer state. With model.adapter the base is frozen anyway.
    trainable: tuple = ((r".*", True),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    steps: int = 0  # 0 = one epoch, or `epochs`
    epochs: float = 1.0  # used when steps is 0
    batch_size: int = 8  # instances per step, over all devices
    accumulate: int = 1  # microbatches per step
    # cache: reference log-probabilities computed once and stored; step: computed from a second,
    # frozen tree in every step; none: for objectives without a reference.
    reference: str = "cache"
    # With reference "step", every so many steps the reference moves to refresh_mixup x policy +
    # (1 - refresh_mixup) x reference; 0 = it stays. A mixup of 1 puts the policy in its place.
    refresh: int = 0
    refresh_mixup: float = 1.0  # share of the policy, in (0, 1]
    log_every: int = 10  # steps
    eval_every: int = 0  # steps; 0 = only at the end
    checkpoint_every: int = 200  # steps
    keep: int = 2  # newest checkpoints kept
    keep_best: int = 0  # and the best by `best_metric` on the held-out data
    best_metric: str = "rewards/accuracies"
    best_mode: str = "max"  # max or min
    # Stop after so many evaluations in a row of which none beat the best `best_metric` by more than
    # min_delta; 0 = take all steps. Needs keep_best.
    patience: int = 0
    min_delta: float = 0.0
    tensorboard: bool = True
    wandb_project: str = ""  # "" = off; needs the wandb package


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    data: int = -1  # -1 = the devices that the others leave; any one axis may say so
    fsdp: int = 1
    tensor: int = 1
    # Several processes (a TPU pod, or GPUs on several hosts): jax.distributed.
    distributed: bool = False
    coordinator: str = ""  # host:port; "" = found by jax (TPU pods, SLURM, ...)
    processes: int = 0  # 0 = found by jax
    process: int = -1  # this process's index; -1 = found by jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
    """Instructions and their rubrics; see data/instructions.py and docs/pipeline.md."""

    path: str = ""  # instructions to learn from: a file, a saved `datasets` directory, a hub name
    split: str = "train"
    eval_path: str = ""  # held-out instructions; "" = no evaluation
    eval_split: str = "test"
    rubrics: str = ""  # the rubric pool; "" = WORKDIR/rubrics.jsonl
    failures: float = 0.0  # share of instructions that may stay without a rubric
    # {writer: oracle, openai or template, <knobs>}, see judges/writers.py
    writer: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"writer": "template", "template": "general"}
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """On-policy responses. The defaults are those of InternVL's MMPR sampler, and 32 as rDPO."""

    count: int = 32  # K, responses per instruction
    temperature: float = 0.7  # 0 = the most likely token
    top_k: int = 50  # 0 = all tokens
    top_p: float = 1.0
    min_p: float = 0.0
    tokens: int = 1024  # of a response, at most
    # {contrast: name, <knobs>, context: .., checkpoint: ..}, see stages/contrasting.py
    contrast: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batch_size: int = 8  # instructions at a time, over all devices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judging:
    # {judge: name, <knobs>}, see judges/
    judge: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    store: str = ""  # the verdict store; "" = WORKDIR/verdicts.sqlite
    again: tuple[str, ...] = ()  # statuses of stored verdicts to ask for once more
    failures: float = 0.0  # share of verdicts that may fail for good before the stage refuses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    # {recipe: name, <knobs>}, see recipes/
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"recipe": "rubric"})
    # {aggregation: name, <knobs>}, see rubrics/aggregation.py
    aggregation: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"aggregation": "weighted_mean"}
    )
    other: str = ""  # checkpoint whose responses are sampled too, for the recipe cross_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounds:
    count: int = 1
    # The frozen reference of each round. round: the policy the round began with; base:
    # model.checkpoint; fixed: model.reference.
    reference: str = "round"
    updates: int = 0  # steps over all rounds, in equal shares; 0 = train.steps or epochs in each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Online:
    """Rounds whose every step samples from the current policy; see docs/pipeline.md.

    The responses come as `sample` says (config.train.batch_size instructions at a time), and
    become branches by `pair.recipe`.
    """

    updates: int = 0  # optimizer steps on each batch of fresh samples; 0 = off: stages
    shown: int = 1  # instructions of a logged step whose responses are kept in responses.jsonl


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    measures: tuple[str, ...] = ("rewards", "answers", "lengths")  # see evals/
    count: int = 1  # responses per held-out instruction
    temperature: float = 0.0
    contrast: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # as in `sample`
    # Another judge than the one that made the training data; {} = the same.
    judge: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Its own, so that every policy is measured on one scale, however its pairs were chosen.
    aggregation: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"aggregation": "weighted_mean"}
    )
    # How `answers` finds the final answer: a regular expression with one group; "" = after the
    # last "answer is" or "answer:".
    pattern: str = ""
    pairs: str = ""  # held-out preference data (TRL's layout) for pair accuracy; "" = none
    bootstrap: int = 2000  # resamples behind the 95 % intervals


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    model: Model = Model()
    data: Data = Data()
    # {name: {term: (default: the name), weight: 1.0, <knobs of the term>}}, see objectives/
    objective: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Training in several stages, each a mapping of changes; see stages/schedule.py
    schedule: tuple = ()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    mesh: Mesh = Mesh()
    # The pipeline around training; see docs/pipeline.md.
    pool: Pool = Pool()
    sample: Sample = Sample()
    judging: Judging = Judging()
    pair: Pair = Pair()
    rounds: Rounds = Rounds()
    online: Online = Online()
    evaluation: Evaluation = Evaluation()
    seed: int = 0


_CHOICES = {
    "model.dtype": ("float32", "bfloat16"),
    "model.param_dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "dots", "full"),
    "model.attention": ("auto", "plain", "splash", "cudnn"),
    "model.quantise": ("", "int8", "nf4"),
    "optimizer.schedule": ("constant", "linear", "cosine"),
    "train.reference": ("cache", "step", "none"),
    "train.best_mode": ("max", "min"),
    "rounds.reference": ("round", "base", "fixed"),
}
_AT_LEAST = {
    "model.logps_chunk": 1,
    "data.max_prompt": 1,
    "data.max_response": 1,
    "data.buckets": 1,
    "data.workers": 0,
    "data.prefetch": 0,
    "data.max_image_pixels": 1,
    "optimizer.learning_rate": 0,
    "optimizer.clip": 0,
    "optimizer.weight_decay": 0,
    "train.steps": 0,
    "train.batch_size": 1,
    "train.accumulate": 1,
    "train.log_every": 1,
    "train.checkpoint_every": 1,
    "train.eval_every": 0,
    "train.keep": 1,
    "train.keep_best": 0,
    "train.patience": 0,
    "train.min_delta": 0,
    "train.refresh": 0,
    "train.refresh_mixup": 0,
    "sample.count": 1,
    "sample.temperature": 0,
    "sample.top_k": 0,
    "sample.top_p": 0,
    "sample.min_p": 0,
    "sample.tokens": 1,
    "sample.batch_size": 1,
    "judging.failures": 0,
    "pool.failures": 0,
    "rounds.count": 1,
    "rounds.updates": 0,
    "online.updates": 0,
    "online.shown": 0,
    "evaluation.count": 1,
    "evaluation.temperature": 0,
    "evaluation.bootstrap": 1,
}
_AT_MOST = {
    "train.refresh_mixup": 1,
    "sample.top_p": 1,
    "sample.min_p": 1,
    "judging.failures": 1,
    "pool.failures": 1,
}


def default() -> ml_collections.ConfigDict:
    """All fields with their defaults; a config file edits and returns it."""
    return ml_collections.ConfigDict(dataclasses.asdict(Config()), convert_dict=True)


def build(values: Mapping[str, Any] | ml_collections.ConfigDict) -> Config:
    """Parses plain values into a Config; ValueError names the field that is wrong."""
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    config = _parse(Config, values, "")
    flat = {
        f"{group.name}.{field.name}": getattr(getattr(config, group.name), field.name)
        for group in dataclasses.fields(config)
        if dataclasses.is_dataclass(getattr(config, group.name))
        for field in dataclasses.fields(getattr(config, group.name))
    }
    for key, choices in _CHOICES.items():
        if flat[key] not in choices:
            raise ValueError(
                f"config.{key} is {flat[key]!r}; it must be {one_of(flat[key], choices)}"
            )
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"config.{key} is {value}; it must be finite.")
    if flat["train.epochs"] <= 0:
        raise ValueError(f"config.train.epochs is {flat['train.epochs']}; it must be above 0.")
    if flat["train.refresh_mixup"] == 0:
        raise ValueError(
            "config.train.refresh_mixup is 0; it must be above 0 (1 = the reference becomes the "
            "policy). For a reference that stays, set config.train.refresh to 0."
        )
    if flat["sample.top_p"] == 0:
        raise ValueError("config.sample.top_p is 0; it must be above 0 (1 = all tokens).")
    for key in (
        "data.branches",
        "data.axes",
        "data.differences",
        "judging.again",
        "evaluation.measures",
    ):
        names = flat[key]
        if not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"config.{key} is {names}; it must be a tuple of names.")
        if len(set(names)) != len(names):
            raise ValueError(f"config.{key} is {names}; its names must differ.")
    for key in ("optimizer.decay", "optimizer.scale", "optimizer.trainable"):
        if not all(
            isinstance(r, tuple) and len(r) == 2 and isinstance(r[0], str) for r in flat[key]
        ):
            raise ValueError(
                f"config.{key} is {flat[key]}; it must be a tuple of (regex, value) pairs, such as "
                '((r"vision/.*", False), (r".*", True)).'
            )
    for key, least in _AT_LEAST.items():
        if flat[key] < least:
            raise ValueError(f"config.{key} is {flat[key]}; it must be at least {least}.")
    for key, most in _AT_MOST.items():
        if flat[key] > most:
            raise ValueError(f"config.{key} is {flat[key]}; it must be at most {most}.")
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested values, as written beside a checkpoint; `build` reads them back."""
    return dataclasses.asdict(config)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """'train.steps: 10 -> 20' for every leaf in which two plain configs differ."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif _plain(a) != _plain(b):
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines


def bind(table: Mapping[str, Callable], name: str, knobs: Mapping[str, Any], *, what: str):
    """Checks a name and its knobs against a table of functions, before any device work.

    Knobs are the keyword-only parameters of the function. Returns the function; raises ValueError
    on an unknown name, an unknown knob or a missing knob, with the nearest match.
    """
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"Unknown {what} {name!r}; it must be {one_of(name, table)}")
    parameters = {
        key: p
        for key, p in inspect.signature(table[name]).parameters.items()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for knob in knobs:
        if knob not in parameters:
            raise ValueError(
                f"{what} {name!r} has no knob {knob!r}; it must be {one_of(knob, parameters)}"
            )
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in knobs]
    if missing:
        raise ValueError(f"{what} {name!r} needs the knob(s) {', '.join(missing)}.")
    return table[name]


def check(function: Callable, knobs: Mapping[str, Any], *, what: str) -> dict[str, Any]:
    """The knobs, as the types of the function's signature want them, ranges included.

    Raises:
      ValueError: a knob of the wrong type or out of range; it names `what` and the knob.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    checked = {}
    for knob, value in knobs.items():
        adapter = pydantic.TypeAdapter(hints[knob], config=_STRICT)
        try:
            checked[knob] = adapter.validate_python(value)
        except pydantic.ValidationError as error:
            raise ValueError(f"{what}: {knob} is {value!r}; {_mend(error)}") from None
    return checked


def one_of(found: Any, options) -> str:
    """'one of a, b, c. Did you mean 'b'?' for error messages."""
    options = [str(option) for option in options]
    near = difflib.get_close_matches(str(found), options, n=1)
    return f"one of {', '.join(options)}." + (f" Did you mean {near[0]!r}?" if near else "")


_STRICT = pydantic.ConfigDict(strict=True)  # no "0.15" for a number, no True for 1


def _mend(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "value_error":
        return f"{first['ctx']['error']}."
    if first["type"] == "literal_error":
        options = re.findall(r"'([^']*)'", first["ctx"]["expected"])
        return f"it must be {one_of(first['input'], options)}"
    return f"it {first['msg'].removeprefix('Input ')}."


def _parse(cls, values: Any, prefix: str):
    if not isinstance(values, Mapping):
        raise ValueError(f"config.{prefix.rstrip('.')} must be a group of fields, not {values!r}.")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ValueError(f"Unknown field config.{prefix}{key}; it must be {one_of(key, hints)}")
    parsed = {}
    for key, value in values.items():
        hint, where = hints[key], f"{prefix}{key}"
        if dataclasses.is_dataclass(hint):
            parsed[key] = _parse(hint, value, where + ".")
        else:
            parsed[key] = _coerce(value, hint, where)
    return cls(**parsed)


def _coerce(value: Any, hint: Any, where: str) -> Any:
    origin = typing.get_origin(hint) or hint
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(tuple(v) if isinstance(v, list | tuple) else v for v in value)
    if isinstance(hint, python_types.UnionType):
        raise TypeError(f"Unsupported field type {hint} at {where}.")
    expected = Mapping if origin is Mapping or origin.__name__ == "Mapping" else origin
    if (isinstance(value, bool) and expected is not bool) or not isinstance(value, expected):
        raise ValueError(
            f"config.{where} is {value!r} ({type(value).__name__}); it must be of type "
            f"{getattr(origin, '__name__', origin)}."
        )
    return dict(value) if expected is Mapping else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
