"""The language of responses: the right one, wrong ones, and what a text is worth on each axis.

A response gives its evidence, then the answer:

  i see a small red circle at top left and a large blue square at middle center .
  so the answer is two .

Four axes, each in [0, 1], which can disagree:

  correctness   the final answer is right
  grounding     share of the things mentioned that are in the picture   (precision)
  completeness  share of the things in the picture that are described   (recall)
  format        the grammar above: 1 kept; 0.5 evidence, then "so" and an answer, but not the
                grammar; 0 otherwise

A mention is paired with at most one thing. For grounding it counts 1 if nothing it states is wrong,
and 0.5 with one attribute wrong and two or three right. For completeness it counts 1 if size,
colour, shape and position are all stated and right, and 0.5 if three of them are. So with a small
red circle at top left and a large blue square at middle center, and "two" the answer:

  response                                                         correct ground complete format
  i see a small red circle at top left . so the answer is two .       1      1      .5      1
  i see a small red circle at top left and a large blue triangle
    at middle center . so the answer is two .                         1     .75     .75     1
  i see a red circle . so the answer is one .                         0      1       0      1
  two . i see a small red circle at top left                          1      1      .5      0
  yes                                                                 0      0       0      0
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rubric_jax.data.scenes import instances, world

AXES = ("correctness", "grounding", "completeness", "format")

_ANSWERS = {
    "describe": world.NUMBERS,
    "count": world.NUMBERS,
    "compare": tuple(world.COLOURS),
    "locate": world.POSITIONS,
    "yesno": world.YESNO,
}


_SIZE, _COLOUR, _SHAPE, _POSITION = (
    "|".join(words) for words in (world.SIZES, world.COLOURS, world.SHAPES, world.POSITIONS)
)
_ANSWER = "|".join(answer for answers in _ANSWERS.values() for answer in answers)
# In the grammar a thing has its "a" and its "at"; read leniently, it has at least a shape.
_THING = rf"a (?:(?:{_SIZE}) )?(?:(?:{_COLOUR}) )?(?:{_SHAPE})(?: at (?:{_POSITION}))?"
_MENTION = re.compile(
    rf"\b(?:({_SIZE}) )?(?:({_COLOUR}) )?({_SHAPE})\b(?: (?:at )?({_POSITION})\b)?"
)
_GRAMMAR = re.compile(rf"i see {_THING}(?: and {_THING})* \. so the answer is (?:{_ANSWER}) \.")
_ORDER = re.compile(rf"\b(?:{_SHAPE})\b.* so\b.*\b(?:{_ANSWER})\b")
_DIGITS = {str(number): word for number, word in enumerate(world.NUMBERS)}


class Check(NamedTuple):
    """What one response says, held against the facts; what a rubric's criteria are judged by."""

    answer: str | None  # the final answer; None if there is none, or several
    correct: bool
    mentions: tuple[world.Thing, ...]  # as stated, in order
    grounded: tuple[float, ...]  # per mention: 1, 0.5 or 0
    described: tuple[float, ...]  # per thing of the scene: 1, 0.5 or 0
    format: float  # 1, 0.5 or 0


def reference(instance: instances.Instance) -> str:
    """The right response: every thing in reading order, then the answer."""
    return sentence(instance.scene.things, instance.answer)


def sentence(things: Sequence[world.Thing], answer: str) -> str:
    """'i see a red circle at top left and a square . so the answer is two .'"""
    return f"i see {_list(things)} . so the answer is {answer} ."


def phrases() -> list[str]:
    """Texts that together use every word of the language; for a vocabulary."""
    things = [
        world.Thing(cell, size, colour, shape)
        for cell in range(9)
        for size in world.SIZES
        for colour in world.COLOURS
        for shape in world.SHAPES
    ]
    return [sentence(things, answer) for answer in dict.fromkeys(_ANSWER.split("|"))]


def check(instance: instances.Instance, text: str) -> Check:
    """Reads any text, garbage too, against the facts of an instance."""
    text = _normalise(text)
    mentions = tuple(_thing(match) for match in _MENTION.finditer(text))
    answer = _answer(text, _ANSWERS[instance.kind])
    things = instance.scene.things
    grounded, described = [0.0] * len(mentions), [0.0] * len(things)
    for m, _, credit in _pair([[_agreement(m, t) for t in things] for m in mentions]):
        grounded[m] = credit
    for _, t, credit in _pair([[_coverage(m, t) for t in things] for m in mentions]):
        described[t] = credit
    form = 1.0 if _GRAMMAR.fullmatch(text) else 0.5 if _ORDER.search(text) else 0.0
    return Check(
        answer, answer == instance.answer, mentions, tuple(grounded), tuple(described), form
    )


def score(instance: instances.Instance, text: str) -> dict[str, float]:
    """Each of AXES in [0, 1]. Nothing mentioned is nothing grounded: grounding is then 0."""
    found = check(instance, text)
    return {
        "correctness": float(found.correct),
        "grounding": _mean(found.grounded),
        "completeness": _mean(found.described),
        "format": found.format,
    }


def corrupt(instance: instances.Instance, axes: Iterable[str], rng: random.Random) -> str:
    """A plausible response that scores below 1 on exactly these axes, and 1 on the others."""
    axes = tuple(axes)
    unknown = [axis for axis in axes if axis not in AXES]
    if unknown:
        raise ValueError(f"Unknown axis {unknown[0]!r}; it must be one of {', '.join(AXES)}.")
    answer = instance.answer
    if "correctness" in axes:
        answer = rng.choice([option for option in instance.options if option != answer])
    things = list(instance.scene.things)
    free = _free(things)
    if "grounding" in axes and "completeness" in axes:
        things = (
            _mistake(things, rng) if rng.random() < 0.7 else _invent(_omit(things, rng), free, rng)
        )
    elif "grounding" in axes:
        things = _invent(things, free, rng)
    elif "completeness" in axes:
        things = _omit(things, rng)
    return _malformed(things, answer, rng) if "format" in axes else sentence(things, answer)


def embellish(instance: instances.Instance, rng: random.Random) -> str:
    """The right response with one thing more, behind those that there are."""
    things = list(instance.scene.things)
    extra = world.random_thing(rng, rng.choice(_free(things)))
    return sentence([*things, extra], instance.answer)


# Ways to be wrong.


def _mistake(things: list[world.Thing], rng: random.Random) -> list[world.Thing]:
    """One or more things with one or two attributes wrong."""
    wrong = rng.sample(range(len(things)), rng.randint(1, len(things)))
    return [_alter(t, things, rng) if i in wrong else t for i, t in enumerate(things)]


def _alter(thing: world.Thing, things: list[world.Thing], rng: random.Random) -> world.Thing:
    changes = {
        # A free cell, so that it cannot turn into another thing of the scene.
        "cell": _free(things),
        "size": [size for size in world.SIZES if size != thing.size],
        "colour": [colour for colour in world.COLOURS if colour != thing.colour],
        "shape": [shape for shape in world.SHAPES if shape != thing.shape],
    }
    names = rng.sample(tuple(changes), rng.randint(1, 2))
    return dataclasses.replace(thing, **{name: rng.choice(changes[name]) for name in names})


def _invent(things: list[world.Thing], cells: list[int], rng: random.Random) -> list[world.Thing]:
    """One thing more than there is, in one of the cells."""
    extra = world.random_thing(rng, rng.choice(cells))
    return sorted([*things, extra], key=lambda t: 9 if t.cell is None else t.cell)


def _free(things: list[world.Thing]) -> list[int]:
    return [cell for cell in range(9) if cell not in {t.cell for t in things}]


def _omit(things: list[world.Thing], rng: random.Random) -> list[world.Thing]:
    """One thing less, or one or two attributes left open."""
    i = rng.randrange(len(things))
    if len(things) > 1 and rng.random() < 0.7:
        return things[:i] + things[i + 1 :]
    names = rng.sample(("size", "colour", "cell"), rng.randint(1, 2))
    open_ = dataclasses.replace(things[i], **dict.fromkeys(names))
    return [*things[:i], open_, *things[i + 1 :]]


def _malformed(things: list[world.Thing], answer: str, rng: random.Random) -> str:
    evidence = _list(things)
    return rng.choice(
        (
            f"{answer} . i see {evidence} .",
            f"i see {evidence} . {answer} .",
            f"{evidence} so the answer is {answer}",
            f"i see {evidence} so the answer is {answer} .",
            f"the answer is {answer} . i see {evidence} .",
        )
    )


# Reading.


def _normalise(text: str) -> str:
    """Lower-case words, digits as words, punctuation apart; special tokens such as </s> gone."""
    text = re.sub(r"</?\w+>", " ", text.lower())
    words = re.findall(r"[a-z]+|[0-9]+|[.,?!:;]", text)
    return " ".join(_DIGITS.get(word, word) for word in words)


def _thing(match: re.Match) -> world.Thing:
    size, colour, shape, position = match.groups()
    return world.Thing(
        None if position is None else world.POSITIONS.index(position), size, colour, shape
    )


def _answer(text: str, options: Sequence[str]) -> str | None:
    """The answer after the last "answer is", else the one outside the evidence; None if unclear."""
    _, said, tail = text.rpartition("answer is ")
    where = tail.partition(".")[0] if said else _MENTION.sub(" ", text)
    found = set(re.findall(rf"\b(?:{'|'.join(options)})\b", where))
    return found.pop() if len(found) == 1 else None


def _attributes(mention: world.Thing, thing: world.Thing) -> tuple[int, int]:
    """How many of the four attributes are stated and right, and stated and wrong."""
    stated = [
        (said, true)
        for said, true in zip(dataclasses.astuple(mention), dataclasses.astuple(thing))
        if said is not None
    ]
    right = sum(said == true for said, true in stated)
    return right, len(stated) - right


def _agreement(mention: world.Thing, thing: world.Thing) -> float:
    right, wrong = _attributes(mention, thing)
    if wrong == 0:
        return 1.0
    # Half for a near miss; "circle" alone is no near miss of a square.
    return 0.5 if wrong == 1 and right >= 2 else 0.0


def _coverage(mention: world.Thing, thing: world.Thing) -> float:
    return {4: 1.0, 3: 0.5}.get(_attributes(mention, thing)[0], 0.0)


def _pair(credits: Sequence[Sequence[float]]) -> tuple[tuple[int, int, float], ...]:
    """The pairing of mentions with things, one to one, of the largest total credit.

    Takes credit per mention and thing; gives (mention, thing, credit). Exact: dynamic programming
    over which of the few things are taken.
    """
    best = {frozenset(): (0.0, ())}
    for m, row in enumerate(credits):
        for taken, (total, pairs) in list(best.items()):
            for t, credit in enumerate(row):
                if t in taken or not credit:
                    continue
                after = taken | {t}
                if after not in best or total + credit > best[after][0]:
                    best[after] = (total + credit, (*pairs, (m, t, credit)))
    return max(best.values(), key=lambda found: found[0])[1]


def _list(things: Sequence[world.Thing]) -> str:
    return " and ".join(_phrase(thing) for thing in things)


def _phrase(thing: world.Thing) -> str:
    """'a small red circle at top left', without what is left open."""
    words = ["a", thing.size, thing.colour, thing.shape]
    if thing.cell is not None:
        words += ["at", thing.position]
    return " ".join(word for word in words if word)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
