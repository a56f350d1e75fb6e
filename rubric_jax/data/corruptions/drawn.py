"""Corruptions that are drawn anew in every step, on the device.

  config.data.contexts = {
      "corrupted": {"corruption": "diffusion_noise", "when": "step",
                    "step": {"from": 200, "to": 800, "over": 1000}},
  }

A function here takes one picture as the model sees it, scaled so that 0 is black and 1 white, and a
key: (picture float32 [H, W, 3], key, *, knobs) -> [H, W, 3], cut to [0, 1] by the caller. The draw
depends on seed, context, training step, row and place of the picture: on no batch, no mesh.

A knob that is a number may be a ramp: it goes straight from `from` to `to` over so many training
steps, then stays. Knobs reach the functions as traced numbers where they are ramps.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rubric_jax import config as config_lib
from rubric_jax import types
from rubric_jax.data.corruptions import knobs, noise

Array = types.Array
TABLE = "drawn"  # in Batch.media: int32 [G, I, 3] of (context or -1, row, place) per picture


def gaussian_noise(picture: Array, key: Array, *, std: knobs.Deviation) -> Array:
    """Adds normal noise; a standard deviation of 1 is the whole range from black to white."""
    return picture + std * jax.random.normal(key, picture.shape)


def diffusion_noise(
    picture: Array, key: Array, *, step: knobs.DiffusionStep, schedule: knobs.Schedule = "sigmoid"
) -> Array:
    """The forward diffusion at `step`, on the picture normalised as for CLIP; see noise.py."""
    table = jnp.asarray(noise.signal(schedule), jnp.float32)
    share = table[jnp.round(step).astype(jnp.int32)]
    normal = (picture - noise.MEAN[None, None]) / noise.STD[None, None]
    drawn = jax.random.normal(key, picture.shape)
    mixed = jnp.sqrt(share) * normal + jnp.sqrt(1 - share) * drawn
    return mixed * noise.STD[None, None] + noise.MEAN[None, None]


def token_mask(
    picture: Array,
    key: Array,
    *,
    share: knobs.Share,
    patch: knobs.Positive = 14,
    fill: knobs.Fill = "mean",
) -> Array:
    """Hides a share of the squares of `patch` pixels, laid from the top left corner."""
    height, width = picture.shape[:2]
    grid = (-(-height // patch), -(-width // patch))
    count = grid[0] * grid[1]
    ranks = jax.random.permutation(key, count).reshape(grid)
    hidden = (ranks < jnp.round(share * count)).repeat(patch, 0).repeat(patch, 1)
    hidden = hidden[:height, :width, None]
    grey = jnp.full((1, 1, 1), 0.0 if fill == "mean" else fill / 255)
    colour = picture.mean(axis=(0, 1), keepdims=True) if fill == "mean" else grey
    return jnp.where(hidden, colour, picture)


DRAWN: dict[str, Callable[..., Array]] = {
    "gaussian_noise": gaussian_noise,
    "diffusion_noise": diffusion_noise,
    "token_mask": token_mask,
}
_STATIC = {"schedule", "patch", "fill"}  # knobs that shape the program


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A number that goes from `start` to `end` over the first `over` training steps."""

    start: float
    end: float
    over: int

    def at(self, done: Array | None) -> Array | float:
        """After `done` steps; None = at the end."""
        if done is None:
            return self.end
        share = jnp.minimum(done.astype(jnp.float32) / self.over, 1.0)
        return self.start + share * (self.end - self.start)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A context whose pictures are corrupted in the step."""

    name: str  # of the context
    function: Callable[..., Array]
    knobs: Mapping[str, Any]  # numbers, names and Ramps
    seed: int


def bind(name: str, values: Mapping[str, Any]) -> Drawn:
    """A context of the config with `when` "step", checked.

    Raises:
      ValueError: a corruption that is none of DRAWN, a knob, a ramp, or what only data can have.
    """
    where = f"config.data.contexts.{name}"
    given = {key: value for key, value in values.items() if key != "when"}
    seed, corruption = given.pop("seed", 0), given.pop("corruption", None)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"{where}.seed is {seed!r}; it must be a whole number.")
    if "then" in given:
        raise ValueError(
            f"{where}.then: in the step there is one corruption; give the context the pictures of "
            f"the others as a column, `{name}_images`, or take 'when': 'data'."
        )
    if corruption not in DRAWN:
        raise ValueError(
            f"{where}.corruption is {corruption!r}; in the step it must be "
            f"{config_lib.one_of(corruption, DRAWN)} Others are made with 'when': 'data'."
        )
    function = DRAWN[corruption]
    ramps = {k: _ramp(f"{where}.{k}", v) for k, v in given.items() if isinstance(v, Mapping)}
    what = f"corruption {corruption!r}"
    try:
        config_lib.bind(DRAWN, corruption, given, what="corruption")
        for ends in ("start", "end"):
            at = {k: getattr(ramps[k], ends) if k in ramps else v for k, v in given.items()}
            config_lib.check(function, at, what=what)
        for knob in ramps.keys() & _STATIC:
            raise ValueError(f"{what}: {knob} is a ramp; it must be one value for all steps.")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
    }
    return Drawn(name, function, {**defaults, **given, **ramps}, seed)


def _ramp(where: str, value: Mapping[str, Any]) -> Ramp:
    if set(value) != {"from", "to", "over"}:
        raise ValueError(
            f"{where} is {dict(value)}; a ramp is {{'from': number, 'to': number, 'over': steps}}."
        )
    over = value["over"]
    if isinstance(over, bool) or not isinstance(over, int) or over < 1:
        raise ValueError(f"{where}.over is {over!r}; it must be a number of training steps, >= 1.")
    return Ramp(value["from"], value["to"], over)


def apply(
    contexts: Mapping[int, Drawn],
    black: np.ndarray,
    white: np.ndarray,
    batch: types.Batch,
    done: Array | None,
) -> types.Batch:
    """The batch with the pictures of these contexts corrupted.

    Args:
      contexts: by number in the layout.
      black, white: float32 [3], what the processor makes of the two.
      batch: whose media hold `pixels` float32 [G, I, H, W, 3] and TABLE.
      done: training steps taken, int32; None = an evaluation: the draw of step 0, ramps at their
        end.

    Raises:
      ValueError: media of another form.
    """
    media = dict(batch.media)
    pixels = media.get("pixels")
    if pixels is None or pixels.ndim != 5 or pixels.shape[-1] != 3:
        raise ValueError(
            f"Contexts with 'when': 'step' need pixels [G, I, H, W, 3], but the family's media "
            f"are {jax.tree.map(np.shape, media)}; take 'when': 'data'."
        )
    where = media.pop(TABLE)  # [G, I, 3]
    if not pixels.shape[1]:
        return batch._replace(media=media)
    low, high = (jnp.asarray(edge)[None, None, None, None] for edge in (black, white))
    shown = (pixels - low) / (high - low)
    for number, drawn in contexts.items():
        now = {k: v.at(done) if isinstance(v, Ramp) else v for k, v in drawn.knobs.items()}
        key = jax.random.fold_in(jax.random.key(drawn.seed), number)
        key = jax.random.fold_in(key, 0 if done is None else done)

        def one(picture, entry, key=key, drawn=drawn, now=now):
            own = jax.random.fold_in(jax.random.fold_in(key, entry[1]), entry[2])
            return jnp.clip(drawn.function(picture, own, **now), 0.0, 1.0)

        made = jax.vmap(jax.vmap(one))(shown, where)
        mine = (where[..., 0] == number)[..., None, None, None]
        pixels = jnp.where(mine, made * (high - low) + low, pixels)
    return batch._replace(media={**media, "pixels": pixels})
