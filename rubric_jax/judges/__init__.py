"""Judges: whatever gives a response its scores, criterion by criterion.

judge = judges.build({"judge": "openai", "model": "..", "base_url": ".."})
verdicts, tally = judges.collect(judge, requests, judges.Store("verdicts.sqlite"))

oracle           the ground truth of scenes, with an optional noise rate
oracle_holistic  the same, as one mark without a rubric
openai           any server that speaks OpenAI's protocol
openai_holistic  the same, one mark without a rubric
vlm              one of the project's own models, "yes" against "no"
vlm_holistic     the same, one question without a rubric
rules            programs: right answers, patterns, boxes; what has no rule goes to another judge
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rubric_jax import config
from rubric_jax.judges import openai, oracle, rules, vlm
from rubric_jax.judges.running import Tally, collect, stream
from rubric_jax.judges.store import Store
from rubric_jax.judges.verdicts import Judge, Request, Unreachable, Usage, Verdict


def _rules(*, otherwise: Mapping[str, Any] | None = None) -> Judge:
    """rules.judge; otherwise: {"judge": name, <knobs>} for criteria without a rule."""
    return rules.judge(build(otherwise) if otherwise else None)


def _check_rules(*, otherwise: Mapping[str, Any] | None = None) -> None:
    if otherwise:
        check(otherwise)


JUDGES: dict[str, Callable[..., Judge]] = {
    "oracle": oracle.oracle,
    "oracle_holistic": oracle.oracle_holistic,
    "openai": openai.openai,
    "openai_holistic": openai.openai_holistic,
    "vlm": vlm.vlm,
    "vlm_holistic": vlm.vlm_holistic,
    "rules": _rules,
}

# Building the others touches neither disk nor network; these would fetch and read a checkpoint.
_CHECKS: dict[str, Callable[..., None]] = {
    "vlm": vlm.check,
    "vlm_holistic": vlm.check,
    "rules": _check_rules,
}


def build(spec: Mapping[str, Any]) -> Judge:
    """The judge of a config: {"judge": name, **knobs}; ValueError names what is wrong."""
    knobs = check(spec)
    return JUDGES[spec["judge"]](**knobs)


def check(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of a judge's spec. Loads nothing and asks nobody.

    Raises ValueError for an unknown judge or knob, and a knob's type or value.
    """
    knobs = dict(spec)
    name = knobs.pop("judge", "")
    function = config.bind(JUDGES, name, knobs, what="judge")
    knobs = config.check(function, knobs, what=f"judge {name!r}")
    try:
        _CHECKS.get(name, function)(**knobs)
    except ValueError as error:
        raise ValueError(f"judge {name!r}: {error}") from error
    return knobs


__all__ = [
    "JUDGES",
    "Judge",
    "Request",
    "Store",
    "Tally",
    "Unreachable",
    "Usage",
    "Verdict",
    "build",
    "check",
    "collect",
    "stream",
]
