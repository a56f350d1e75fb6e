"""From a config to an optax transformation, with rules over parameter paths.

  update = -lr(step) * scale(path) * (direction(clipped gradient) + weight_decay * decay(path) * p)

`direction` is the optimizer's own: one function per name in OPTIMIZERS. Decay is decoupled and
multiplied by the learning rate, as in torch's AdamW, for all of them alike. Frozen parameters are
split off before (`trainable`, `paths.split`), so trees may hold None, which has no state.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import jax
import optax

from rubric_jax import config, paths
from rubric_jax.models import adapters

# How Muon reads a parameter as a matrix, by path: (axes going in, axes coming out), counted from
# the last axis; those before them (layers) are a batch. None: the parameter goes to Adam.
MATRICES = (
    (r"(.*/)?(q|k|v)/kernel", (1, 2)),  # [L, D, H, hd]
    (r"(.*/)?o/kernel", (2, 1)),  # [L, H, hd, D]
    (r"(.*/)?patch/kernel", None),  # an embedding of pixels
    (r"(.*/)?kernel", (1, 1)),  # [L, D, F]
    (r".*", None),  # embeddings, norms, biases
)


def build(
    optimizer_config: config.Optimizer, params_shapes, steps: int
) -> tuple[optax.GradientTransformation, Callable]:
    """The transformation and its schedule (step -> learning rate), for a run of `steps` steps.

    params_shapes is a tree of arrays or ShapeDtypeStructs, None where frozen. Raises ValueError on
    an unknown optimizer or knob, and on rules that leave a parameter out or hold no number >= 0.
    """
    c = optimizer_config
    direction = config.bind(OPTIMIZERS, c.name, c.knobs, what="config.optimizer.name")
    for field in ("decay", "scale"):
        _check_multipliers(getattr(c, field), params_shapes, f"config.optimizer.{field}")
    rate = schedule(c, steps)
    parts = [
        optax.clip_by_global_norm(c.clip) if c.clip else optax.identity(),
        direction(**c.knobs),
        _add_decay(c.weight_decay, c.decay),
        _multiply(c.scale),
        optax.scale_by_learning_rate(rate),
    ]
    return optax.chain(*parts), rate


def trainable(optimizer_config: config.Optimizer, params):
    """A tree of bool like `params`: True where config.optimizer.trainable lets it train.

    A pattern that matches nothing is an error: a slip in it would train what should be frozen.
    Where there is an adapter its base stays frozen, whatever the rules say; they choose among the
    adapter's own leaves and those of heads.
    """
    rules = optimizer_config.trainable
    names = list(paths.flatten(params))
    for pattern, value in rules:
        if not isinstance(value, bool):
            raise ValueError(
                f"config.optimizer.trainable has {value!r} for {pattern!r}; use True or False."
            )
        if not any(_matches(pattern, name, "trainable") for name in names):
            raise ValueError(
                f"config.optimizer.trainable: no parameter matches {pattern!r}; the parameters are "
                f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}."
            )
    tree = paths.match(rules, params, what="rule of config.optimizer.trainable")
    if adapters.has(params):
        tree = paths.map_named(lambda path, chosen: chosen and adapters.trains(path), tree)
    if not any(jax.tree.leaves(tree)):
        raise ValueError("config.optimizer.trainable freezes every parameter; let one train.")
    return tree


def schedule(optimizer_config: config.Optimizer, steps: int) -> Callable:
    """Learning rate at step 0, 1, ..., steps - 1.

    Warm-up over w = warmup * steps steps, rounded up: peak * (step + 1) / (w + 1), so that no step
    is lost to a rate of zero. Then constant, or a line or half a cosine that would reach end * peak
    at step `steps`.
    """
    c = optimizer_config
    if steps < 1:
        raise ValueError(f"A schedule needs at least one step, not {steps}.")
    if not 0 <= c.warmup <= 1:
        raise ValueError(f"config.optimizer.warmup is {c.warmup}; it must be a share in [0, 1].")
    if not c.end >= 0:
        raise ValueError(f"config.optimizer.end is {c.end}; it must be a share >= 0.")
    warm = min(math.ceil(c.warmup * steps), steps - 1)
    peak, rest = c.learning_rate, steps - warm
    after = SCHEDULES[c.schedule](peak, c.end, rest)
    if not warm:
        return after
    before = optax.linear_schedule(peak / (warm + 1), peak, warm)
    return optax.join_schedules([before, after], [warm])


SCHEDULES = {
    "constant": lambda peak, end, steps: optax.constant_schedule(peak),
    "linear": lambda peak, end, steps: optax.linear_schedule(peak, end * peak, steps),
    "cosine": lambda peak, end, steps: optax.cosine_decay_schedule(peak, steps, alpha=end),
}


def adamw(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8):
    """Adam's direction; the decay is `build`'s. Loshchilov and Hutter, arXiv:1711.05101"""
    return optax.scale_by_adam(b1=b1, b2=b2, eps=eps)


def lion(*, b1: float = 0.9, b2: float = 0.99):
    """The sign of a momentum: one moment, and a learning rate 3 to 10 times smaller than AdamW's.

    Chen et al., arXiv:2302.06675
    """
    return optax.scale_by_lion(b1=b1, b2=b2)


def adafactor(
    *,
    min_dim_size_to_factor: int = 128,
    decay_rate: float = 0.8,
    eps: float = 1e-30,
    clipping_threshold: float = 1.0,
    multiply_by_parameter_scale: bool = False,
):
    """Second moments as rows and columns: almost no optimizer memory. Shazeer, Stern 1804.04235

    The two largest axes of a parameter are factored when both have min_dim_size_to_factor entries.
    multiply_by_parameter_scale is off, as in transformers' Trainer, so that a learning rate means
    what it means for AdamW. Updates of stacked layers are clipped together.
    """
    parts = [
        optax.scale_by_factored_rms(True, decay_rate, 0, min_dim_size_to_factor, eps),
        optax.clip_by_block_rms(clipping_threshold),
    ]
    if multiply_by_parameter_scale:
        parts.append(optax.scale_by_param_block_rms())
    return optax.chain(*parts)


def muon(
    *,
    beta: float = 0.95,
    ns_steps: int = 5,
    nesterov: bool = True,
    rms: float = 0.2,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    matrices: tuple = MATRICES,
):
    """Orthogonalised momentum for matrices, Adam for the rest. Jordan; Liu et al. arXiv:2502.16982

    A matrix's update has entries of size `rms`, as Adam's tend to have, so one learning rate serves
    both. `matrices` says by path what is a matrix (see MATRICES); heads are read together, layers
    apart.
    """

    def label(path, _):
        return "adam" if paths.lookup(matrices, path, what="rule of matrices") is None else "muon"

    def dimensions(updates):
        return paths.map_named(lambda path, leaf: _dimensions(matrices, path, leaf.ndim), updates)

    def resize(updates, params=None):
        return paths.map_named(lambda path, u: u * rms * _larger_side(matrices, path, u), updates)

    return optax.partition(
        {
            "muon": optax.chain(
                optax.contrib.scale_by_muon(
                    beta=beta,
                    ns_steps=ns_steps,
                    eps=eps,
                    nesterov=nesterov,
                    weight_dimension_numbers=dimensions,
                ),
                optax.stateless(resize),
            ),
            "adam": optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        },
        lambda params: paths.map_named(label, params),
    )


OPTIMIZERS = {"adamw": adamw, "adafactor": adafactor, "lion": lion, "muon": muon}


def _dimensions(matrices: paths.Rules, path: str, ndim: int) -> optax.contrib.MuonDimensionNumbers:
    rows, columns = paths.lookup(matrices, path)
    if rows + columns > ndim:
        raise ValueError(
            f"Muon reads {path!r} as a matrix of {rows} + {columns} axes, but it has {ndim}; "
            "give it another rule in config.optimizer.knobs.matrices, or None for Adam."
        )
    axes = tuple(range(ndim - rows - columns, ndim))
    return optax.contrib.MuonDimensionNumbers(axes[:rows], axes[rows:])


def _larger_side(matrices: paths.Rules, path: str, leaf) -> float:
    """sqrt of the larger side: an orthogonal matrix times this has entries of size about 1."""
    dims = _dimensions(matrices, path, leaf.ndim)
    sides = [math.prod(leaf.shape[axis] for axis in axes) for axes in dims]
    return math.sqrt(max(sides))


def _add_decay(weight_decay: float, rules: paths.Rules) -> optax.GradientTransformation:
    """Adds weight_decay * multiplier(path) * parameter."""
    if not weight_decay:
        return optax.identity()

    def add(updates, params):
        factors = paths.match(rules, updates, what="rule of config.optimizer.decay")
        return jax.tree.map(lambda u, f, p: u + weight_decay * f * p, updates, factors, params)

    return optax.stateless(add)


def _multiply(rules: paths.Rules) -> optax.GradientTransformation:
    """Multiplies updates by multiplier(path)."""
    if all(factor == 1 for _, factor in rules):
        return optax.identity()

    def multiply(updates, params=None):
        factors = paths.match(rules, updates, what="rule of config.optimizer.scale")
        return jax.tree.map(lambda u, f: u * f, updates, factors)

    return optax.stateless(multiply)


def _check_multipliers(rules: paths.Rules, shapes, where: str) -> None:
    for pattern, value in rules:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise ValueError(f"{where} has {value!r} for {pattern!r}; it must be a number >= 0.")
    for pattern, _ in rules:
        _matches(pattern, "", where)
    paths.match(rules, shapes, what=f"rule of {where}")


def _matches(pattern: str, name: str, where: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise ValueError(f"{where}: {pattern!r} is no regular expression: {error}.") from error
