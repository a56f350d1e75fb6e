"""The oracle of `scenes`: rubrics written from the ground truth, and a judge that knows it.

The rubric of an instance with two things:

  id                 kind        weight  axis          scale   text
  answer             essential   3       correctness   binary  The final answer is two.
  nothing_invented   essential   2       grounding     halves  Everything it mentions is there ...
  thing_1, thing_2   additional  2       completeness  halves  It describes a small red circle ...
  format             additional  1       format        halves  It gives the evidence, then ...

Every criterion carries the facts in its `check`, so the judge needs no model and no other file, and
a rubric that belongs to another instance (a control) is judged by what that rubric says.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Iterable, Iterator

from rubric_jax.data import scenes
from rubric_jax.judges import verdicts
from rubric_jax.rubrics import records, scales

VERSION = "1"  # of the checks below; part of the key of their verdicts

# What a whole response is worth to the holistic oracle: right answers first.
_WEIGHTS = {"correctness": 0.4, "grounding": 0.3, "completeness": 0.2, "format": 0.1}


def rubric(instance: scenes.Instance, key: str) -> records.Rubric:
    """The rubric of a scene's instance; key: see records.instance_key."""
    things = instance.scene.things
    criteria = [
        _criterion(
            "answer",
            f"The final answer is {instance.answer}.",
            ("essential", 3, "correctness", "binary"),
            {"about": "answer"},
        ),
        _criterion(
            "nothing_invented",
            "Every shape it mentions is in the picture, as it says.",
            ("essential", 2, "grounding", "halves"),
            {"about": "mentions"},
        ),
        *(
            _criterion(
                f"thing_{i + 1}",
                f"It describes a {t.size} {t.colour} {t.shape} at {t.position}, in full.",
                ("additional", 2, "completeness", "halves"),
                {"about": "thing", "thing": i},
            )
            for i, t in enumerate(things)
        ),
        _criterion(
            "format",
            "It gives the evidence first, then the answer, in the agreed form.",
            ("additional", 1, "format", "halves"),
            {"about": "format"},
        ),
    ]
    facts = json.dumps(instance.facts)
    return records.Rubric(
        key=key,
        source="oracle",
        criteria=tuple(
            c.model_copy(update={"check": c.check | {"facts": facts}}) for c in criteria
        ),
    )


def oracle(*, noise: float = 0.0, seed: int = 0) -> verdicts.Judge:
    """Judges every criterion of an oracle's rubric by the facts.

    Args:
      noise: share of the criterion scores that are replaced by another level of the scale, in
        [0, 1]. Which ones depends on the content judged and the seed alone.
      seed: of the noise.
    """
    return _judge("oracle", noise, seed)


def oracle_holistic(*, noise: float = 0.0, seed: int = 0) -> verdicts.Judge:
    """One mark from 1 to 5 for the whole response, as a judge without a rubric gives it.

    The mark is the weighted mean of the true axes, rounded to the scale: differences within a
    quarter are lost. Arguments as in `oracle`.
    """
    return _judge("oracle_holistic", noise, seed)._replace(rubric=verdicts.holistic_rubric)


def _judge(name: str, noise: float, seed: int) -> verdicts.Judge:
    if not 0 <= noise <= 1:
        raise ValueError(f"The oracle's noise is {noise}; it must be in [0, 1].")
    identity = verdicts.Identity(
        name, prompt=VERSION, settings=verdicts.settings(noise=noise, seed=seed)
    )

    def score(requests: Iterable[verdicts.Request], journal: verdicts.Journal) -> Iterator:
        for request in requests:
            key = verdicts.key(identity, request) if noise else ""
            scores = {}
            for criterion in request.rubric.criteria:
                true = _decide(criterion, request.response)
                scores[criterion.id] = _noisy(true, criterion.scale, noise, (key, criterion.id))
            yield request, verdicts.Verdict("scored", scores)

    return verdicts.Judge(identity, score)


def _criterion(ident, text, how, check) -> records.Criterion:
    kind, weight, axis, scale = how
    return records.Criterion(
        id=ident, text=text, kind=kind, weight=weight, axis=axis, scale=scale, check=check
    )


def _facts(criterion: records.Criterion) -> str:
    check = criterion.check or {}
    if not {"about", "facts"} <= check.keys():
        raise ValueError(
            f"The oracle cannot decide the criterion {criterion.id!r}: it has no facts to check. "
            "Use rubrics written by the scenes oracle, or another judge."
        )
    return check["facts"]


@functools.lru_cache(maxsize=4096)
def _instance(facts: str) -> scenes.Instance:
    return scenes.from_facts(json.loads(facts))


@functools.lru_cache(maxsize=8)  # the criteria of a response come one after the other
def _check(facts: str, response: str) -> scenes.Check:
    return scenes.check(_instance(facts), response)


def _decide(criterion: records.Criterion, response: str) -> float:
    """The true score of one criterion, a level of its scale."""
    facts = _facts(criterion)
    found = _check(facts, response)
    about = criterion.check["about"]
    if about == "answer":
        return float(found.correct)
    if about == "thing":
        return found.described[criterion.check["thing"]]
    if about == "format":
        return found.format
    if about == "overall":
        axes = scenes.score(_instance(facts), response)
        return int(4 * sum(_WEIGHTS[axis] * axes[axis] for axis in _WEIGHTS) + 0.5) / 4
    if about == "mentions":
        if not found.grounded or sum(found.grounded) < 0.5 * len(found.grounded):
            return 0.0
        return 1.0 if min(found.grounded) == 1.0 else 0.5
    raise ValueError(f"The oracle knows no check about {about!r} ({criterion.id}).")


def _noisy(score: float, scale: str, noise: float, what: tuple[str, str]) -> float:
    rng = random.Random("/".join(what))  # the key holds the seed
    if rng.random() >= noise:
        return score
    return rng.choice([value for value in scales.get(scale).levels.values() if value != score])
