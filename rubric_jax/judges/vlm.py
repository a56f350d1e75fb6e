"""The project's own models as judges: "yes" against "no", all criteria in one forward pass.

A row is one response. What its questions have in common is read once; each criterion is a branch:

  prefix                                              branches
  <image> .. instruction .. response .. Is this       The answer is two. <assistant> | yes
    statement true of the response? ..                It names a circle. <assistant> | yes

  score = p(yes) / (p(yes) + p(no)), from the state that predicts the answer

The tokens of a branch are those of the whole question, tokenised by itself, so the score is that of
C separate passes. It is a probability: on the scale `binary` of the level true; on `halves` and
`1-5` it stands for the expected worth, and nothing is rounded to a level. A `penalty` criterion is
asked as it is written.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rubric_jax import config as config_lib
from rubric_jax import models, sharding, types
from rubric_jax.data import forms, images, processing
from rubric_jax.judges import prompts, questions, verdicts
from rubric_jax.likelihoods import autoregressive
from rubric_jax.models import vlm as vlm_lib
from rubric_jax.models import weights

Array = types.Array

_WINDOW = 8  # batches whose requests are sorted by length together


def vlm(
    *,
    checkpoint: str,
    family: str = "llava",
    dtype: str = "float32",
    attention: str = "auto",
    yes: str = "yes",
    no: str = "no",
    batch_size: int = 8,
    max_prompt: int = 4096,
    max_image_pixels: int = config_lib.Data.max_image_pixels,
    pixels: Sequence[int] = (),
    mesh: Mapping[str, int] | None = None,
) -> verdicts.Judge:
    """Criterion by criterion, under the rubric.

    The weights are read when the first verdict is asked for that the store does not have.

    Args:
      checkpoint: Hugging Face directory or hub name; it needs a chat template.
      family: name in models.MODELS.
      dtype: of parameters and computation, float32 or bfloat16.
      attention: as config.model.attention.
      yes, no: the answers; their first differing tokens are compared.
      batch_size: responses at a time, over all devices of this process.
      max_prompt: tokens of a row at most, with images; a longer one is a failed verdict.
      max_image_pixels: decoded width x height beyond which an image is refused.
      pixels: least and most pixels of an image after resizing, where a family reads images at
        their own size; () = as the checkpoint's processor says.
      mesh: sizes of the axes data (default: all devices), fsdp and tensor.

    Raises:
      ValueError: no such checkpoint, or one that cannot be a judge; while judging, an image or a
        text that the processor refuses.
    """
    limits = _Limits(batch_size, max_prompt, max_image_pixels)
    words = {"yes": yes, "no": no}
    check(
        checkpoint=checkpoint,
        family=family,
        dtype=dtype,
        attention=attention,
        pixels=pixels,
        mesh=mesh,
        **words,
        **limits._asdict(),
    )
    compute = {"dtype": dtype, "attention": attention}
    reader = _reader(checkpoint, family, compute, (yes, no), prompts.yes_no, mesh, pixels)
    return _judge("vlm", reader, limits)


def vlm_holistic(
    *,
    checkpoint: str,
    family: str = "llava",
    dtype: str = "float32",
    attention: str = "auto",
    yes: str = "yes",
    no: str = "no",
    batch_size: int = 8,
    max_prompt: int = 4096,
    max_image_pixels: int = config_lib.Data.max_image_pixels,
    pixels: Sequence[int] = (),
    mesh: Mapping[str, int] | None = None,
) -> verdicts.Judge:
    """One question about the whole response, without a rubric. Arguments as in `vlm`."""
    limits = _Limits(batch_size, max_prompt, max_image_pixels)
    words = {"yes": yes, "no": no}
    check(
        checkpoint=checkpoint,
        family=family,
        dtype=dtype,
        attention=attention,
        pixels=pixels,
        mesh=mesh,
        **words,
        **limits._asdict(),
    )
    compute, ask = {"dtype": dtype, "attention": attention}, prompts.holistic_yes_no
    reader = _reader(checkpoint, family, compute, (yes, no), ask, mesh, pixels)
    return _judge("vlm_holistic", reader, limits)._replace(rubric=verdicts.holistic_rubric)


def check(
    *,
    checkpoint: str,
    family: str = "llava",
    dtype: str = "float32",
    attention: str = "auto",
    yes: str = "yes",
    no: str = "no",
    pixels: Sequence[int] = (),
    mesh: Mapping[str, int] | None = None,
    **limits: int,
) -> None:
    """Raises ValueError for a knob of `vlm` out of its range. Reads nothing."""
    if not checkpoint:
        raise ValueError("checkpoint is empty; name a Hugging Face directory.")
    if family not in models.MODELS:
        raise ValueError(
            f"family is {family!r}; it must be {config_lib.one_of(family, models.MODELS)}"
        )
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is {dtype!r}; it must be float32 or bfloat16.")
    if attention not in models.ROUTES:
        options = config_lib.one_of(attention, models.ROUTES)
        raise ValueError(f"attention is {attention!r}; it must be {options}")
    if not yes.strip() or not no.strip() or yes == no:
        raise ValueError(f"yes is {yes!r} and no is {no!r}; they cannot be told apart.")
    forms.check_pixels(tuple(pixels))
    for axis in mesh or {}:
        if axis not in sharding.AXES:
            options = config_lib.one_of(axis, sharding.AXES)
            raise ValueError(f"mesh has no axis {axis!r}; it must be {options}")
    for knob, value in limits.items():
        if value < 1:
            raise ValueError(f"{knob} is {value}; it must be at least 1.")


@functools.partial(jax.jit, static_argnames=("vlm", "layout"))
def agreement(
    vlm: vlm_lib.VLM,
    params: types.Params,
    batch: types.Batch,
    answers: Array,
    *,
    layout: types.Layout,
) -> Array:
    """p(yes) / (p(yes) + p(no)) where the mask of each branch is 1: float32 [B, N].

    answers: int32 [2], the tokens of yes and no.
    """
    hidden = vlm.hidden(params, batch, layout)  # [B, N, T, D]
    at = jnp.argmax(batch.mask, axis=-1)
    states = jnp.take_along_axis(hidden, at[:, :, None, None], axis=2)[:, :, 0]  # [B, N, D]
    columns = jnp.take(vlm.unembed(params), answers, axis=1)  # [D, 2]
    logits = autoregressive.logits(states, columns, cap=vlm.logit_cap)
    return jax.nn.sigmoid(logits[..., 0] - logits[..., 1])


class _Limits(NamedTuple):
    """What changes no verdict, but whether there is one."""

    batch_size: int
    max_prompt: int
    max_image_pixels: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Reader:
    """A checkpoint that answers questions; its weights are read on first use."""

    directory: pathlib.Path
    vlm: vlm_lib.VLM
    asker: questions.Asker
    dtype: str
    mesh: jax.sharding.Mesh

    @functools.cached_property
    def params(self) -> types.Params:
        dtype = jnp.dtype(self.dtype)
        shapes = jax.eval_shape(self.vlm.init, jax.random.key(0))
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
        places, _ = sharding.place(self.mesh, self.vlm.rules, shapes)
        return weights.load(self.directory, self.vlm.weights, shapes, dtype=dtype, shardings=places)


def _reader(checkpoint, family, compute, words, ask, mesh, pixels) -> _Reader:
    directory = models.directory(checkpoint)
    reader = _Reader(
        directory=directory,
        vlm=models.build(family, directory, **compute),
        asker=questions.Asker(processing.load(str(directory), tuple(pixels)), words, ask),
        dtype=compute["dtype"],
        # Every process judges requests of its own.
        mesh=sharding.make(config_lib.Mesh(**(mesh or {})), jax.local_devices()),
    )
    try:
        reader.asker.answers  # noqa: B018  (raises where there are none)
    except processing.FieldError as error:
        raise ValueError(f"The checkpoint {checkpoint!r} cannot judge: {error}") from error
    return reader


def _judge(name: str, reader: _Reader, limits: _Limits) -> verdicts.Judge:
    identity = verdicts.Identity(
        name,
        weights.fingerprint(reader.directory, reader.vlm.weights),
        f"yes-no {prompts.YES_NO_VERSION}",
        verdicts.settings(
            config=hashlib.sha256(repr(reader.vlm.config).encode()).hexdigest(),
            processor=reader.asker.processor.fingerprint,
            dtype=reader.dtype,
            words=reader.asker.words,
        ),
    )
    return verdicts.Judge(identity, lambda requests, journal: _score(reader, limits, requests))


def _score(
    reader: _Reader, limits: _Limits, requests: Iterable[verdicts.Request]
) -> Iterator[tuple[verdicts.Request, verdicts.Verdict]]:
    shards = sharding.data_shards(reader.mesh)
    size = -(-limits.batch_size // shards) * shards
    # Room for a window of requests with a picture or two; responses of an instance share theirs.
    picture = functools.lru_cache(2 * _WINDOW * size)(
        functools.partial(_picture, reader.asker.processor, limits.max_image_pixels)
    )
    requests = iter(requests)
    while window := list(itertools.islice(requests, _WINDOW * size)):
        rows = []
        for request in window:
            row = _read(reader, request, picture)
            if row.length > limits.max_prompt:
                reason = f"long prompt: {row.length} tokens, max_prompt is {limits.max_prompt}"
                yield request, verdicts.Verdict("failed", {}, (reason,))
            else:
                rows.append((request, row))
        rows.sort(key=lambda pair: questions.shape(pair[1]))
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            batch = questions.collate(
                [row for _, row in part], picture, reader.vlm.media, size=size, groups=shards
            )
            for (request, row), values in zip(part, _scores(reader, batch)):
                yield request, _verdict(request, row, values)


def _scores(reader: _Reader, batch: types.Batch) -> np.ndarray:
    layout = types.Layout.of(tuple(f"criterion_{c}" for c in range(batch.responses.shape[1])))
    with jax.set_mesh(reader.mesh):
        found = agreement(
            reader.vlm,
            reader.params,
            sharding.put_batch(batch, reader.mesh),
            np.asarray(reader.asker.answers, np.int32),
            layout=layout,
        )
    return sharding.to_host(found)


def _verdict(request: verdicts.Request, row: questions.Row, values: np.ndarray) -> verdicts.Verdict:
    scores, problems = {}, []
    for criterion, value in zip(request.rubric.criteria, values):
        if math.isfinite(value):
            scores[criterion.id] = float(value)
        else:  # overflow in bfloat16, or damaged weights
            problems.append(f"not a number: {criterion.id}")
    status = ("partial" if scores else "unparsable") if problems else "scored"
    tokens = len(row.prefix) + sum(map(len, row.branches))
    usage = verdicts.Usage(calls=1, prompt_tokens=tokens)
    return verdicts.Verdict(status, scores, tuple(problems), usage=usage)


def _read(
    reader: _Reader, request: verdicts.Request, picture: Callable[[bytes], types.Picture]
) -> questions.Row:
    try:
        return reader.asker.row(request, [picture(data) for data in request.instance.images])
    except ValueError as error:
        raise ValueError(
            f"The instruction {request.instance.instruction[:100]!r} cannot be judged: {error}"
        ) from error


def _picture(processor: processing.Processor, max_pixels: int, data: bytes) -> types.Picture:
    images.check(data, max_pixels)
    return processor.picture(images.decode(data))
