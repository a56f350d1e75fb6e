"""Criteria and rubrics, validated.

A rubric is a checklist for one instance (images and an instruction). As JSON:

  {"key": "5f1c..", "source": "oracle", "criteria": [
    {"id": "answer", "text": "The final answer is two.", "kind": "essential", "weight": 3,
     "axis": "correctness", "scale": "binary"},
    {"id": "style", "text": "Clear and concise.", "kind": "additional", "weight": 1,
     "axis": "style", "scale": "1-5", "levels": {"1": "Hard to follow.", "5": "Clear."}}]}

  kind     essential: failing it makes the response wrong or ungrounded; additional: quality beyond
  weight   importance, > 0; usually 1, 2 or 3
  axis     the reward axis it counts for
  scale    see scales.py; `levels` says in words what its levels mean
  penalty  true: the text names a fault, and meeting it costs the weight
  check    what a program needs to decide it without a model (see judges/oracle.py)
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pydantic

from rubric_jax import config as config_lib
from rubric_jax.rubrics import scales

KINDS = ("essential", "additional")


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class Instance(_Record):
    """What a rubric and a verdict are about: pictures as encoded bytes, and an instruction."""

    instruction: str
    images: tuple[bytes, ...] = pydantic.Field(default=(), repr=False)

    @property
    def key(self) -> str:
        return instance_key(self.images, self.instruction)


class Criterion(_Record):
    id: str = pydantic.Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    text: str = pydantic.Field(min_length=1)
    kind: Literal["essential", "additional"]
    weight: float = pydantic.Field(gt=0, allow_inf_nan=False)
    axis: str = pydantic.Field(min_length=1)
    scale: str = "halves"
    levels: dict[str, str] | None = None
    penalty: bool = False
    check: dict[str, Any] | None = None

    @pydantic.field_validator("scale")
    @classmethod
    def _known(cls, scale: str) -> str:
        scales.get(scale)
        return scale

    @pydantic.model_validator(mode="after")
    def _on_scale(self) -> Criterion:
        known = scales.get(self.scale).levels
        for level in self.levels or {}:
            if level not in known:
                raise ValueError(
                    f"level {level!r} is not on the scale {self.scale}; it must be "
                    f"{config_lib.one_of(level, known)}"
                )
        return self


class Rubric(_Record):
    key: str = pydantic.Field(min_length=1)  # of the instance, see instance_key
    criteria: tuple[Criterion, ...]
    source: str = ""  # what wrote it: oracle, template:general, a model's name

    @pydantic.field_validator("criteria")
    @classmethod
    def _complete(cls, criteria: tuple[Criterion, ...]) -> tuple[Criterion, ...]:
        if not criteria:
            raise ValueError("an empty rubric; give it at least one essential criterion")
        ids = [criterion.id for criterion in criteria]
        twice = sorted({i for i in ids if ids.count(i) > 1})
        if twice:
            raise ValueError(f"the id {twice[0]!r} occurs twice; give every criterion its own")
        if all(c.kind != "essential" for c in criteria):
            raise ValueError(
                "no essential criterion; mark those that a right answer cannot fail as essential"
            )
        return criteria

    @property
    def digest(self) -> str:
        """sha256 of the criteria: equal for rubrics that ask the same."""
        criteria = [c.model_dump(mode="json", exclude_none=True) for c in self.criteria]
        return hashlib.sha256(json.dumps(criteria, sort_keys=True).encode()).hexdigest()


def instance_key(images: Sequence[bytes], instruction: str) -> str:
    """sha256 over the bytes of the image files, in order, and the instruction's text."""
    content = [*map(_image_digest, images), instruction]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@functools.lru_cache(maxsize=64)  # the K responses of an instance come one after the other
def _image_digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def parse(value: Any, *, where: str, axes: Sequence[str] = ()) -> Rubric:
    """A rubric of plain values.

    Args:
      value: a mapping as above.
      where: begins every error, such as 'pool.jsonl:3'.
      axes: the run's reward axes; empty = any.

    Raises:
      ValueError: 'where: field: what is wrong, and the mend'.
    """
    try:
        rubric = Rubric.model_validate(value)
    except pydantic.ValidationError as error:
        raise ValueError(f"{where}: {_explain(error, value)}") from None
    check_axes(rubric, axes, where=where)
    return rubric


def parse_criterion(value: Any, *, where: str, axes: Sequence[str] = ()) -> Criterion:
    """One criterion of plain values; errors as in `parse`."""
    try:
        criterion = Criterion.model_validate(value)
    except pydantic.ValidationError as error:
        raise ValueError(f"{where}: {_explain(error, value)}") from None
    if axes and criterion.axis not in axes:
        raise ValueError(f"{where}: axis: {_unknown_axis(criterion, axes)}")
    return criterion


def check_axes(rubric: Rubric, axes: Sequence[str], *, where: str) -> None:
    """Raises ValueError where a criterion counts for an axis that the run does not have."""
    for i, criterion in enumerate(rubric.criteria):
        if axes and criterion.axis not in axes:
            field = f"criteria[{i}].axis"
            raise ValueError(f"{where}: {field}: {_unknown_axis(criterion, axes)}")


def axes_of(rubrics: Sequence[Rubric]) -> tuple[str, ...]:
    """The axes that the criteria name, in order of first use."""
    return tuple(dict.fromkeys(c.axis for rubric in rubrics for c in rubric.criteria))


def to_json(rubric: Rubric) -> str:
    """One line of a pool; `parse` reads it back."""
    defaults = {name: field.default for name, field in Criterion.model_fields.items()}
    value = rubric.model_dump(mode="json", exclude={"criteria"})
    value["criteria"] = [
        {k: v for k, v in criterion.model_dump(mode="json").items() if v != defaults[k]}
        | {"scale": criterion.scale}
        for criterion in rubric.criteria
    ]
    return json.dumps(value)


def _unknown_axis(criterion: Criterion, axes: Sequence[str]) -> str:
    return (
        f"unknown axis {criterion.axis!r} of {criterion.id!r}; it must be "
        f"{config_lib.one_of(criterion.axis, axes)}"
    )


def _explain(error: pydantic.ValidationError, value: Any) -> str:
    """The first error: field, what was found, and the mend."""
    first = error.errors()[0]
    path, kind = first["loc"], first["type"]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    field = field.removeprefix(".") or "rubric"
    found = repr(first["input"])
    found = found if len(found) <= 80 else found[:77] + "..."
    if kind == "greater_than" and _all_zero(value):
        return (
            "criteria: all weights are zero; give every criterion a weight > 0, such as 1, 2 or 3."
        )
    if kind == "extra_forbidden":
        known = Criterion if "criteria" in path[:-1] else Rubric
        return (
            f"{field}: unknown field; it must be {config_lib.one_of(path[-1], known.model_fields)}"
        )
    if kind == "missing":
        return f"{field}: missing; add it."
    if kind == "literal_error":
        return f"{field}: {found}; it must be {config_lib.one_of(first['input'], KINDS)}"
    if kind == "greater_than":
        return f"{field}: {found}; a weight must be > 0. Leave out what should not count."
    if kind == "string_pattern_mismatch":
        return f"{field}: {found}; an id has 1 to 64 letters, digits and _ . - only."
    if kind == "value_error":
        return f"{field}: {str(first['ctx']['error']).rstrip('.')}."
    message = first["msg"]
    return f"{field}: found {found}; {message[0].lower()}{message[1:]}."


def _all_zero(value: Any) -> bool:
    criteria = value.get("criteria") if isinstance(value, Mapping) else None
    return isinstance(criteria, list) and all(
        isinstance(c, Mapping) and c.get("weight") == 0 for c in criteria
    )
