"""What is asked of a scene, and what is true.

An instance is a scene and an instruction:

  kind      text                                                     options
  describe  describe every shape and say how many there are .        one, two, three
  count     how many red shapes are there ?                          zero, one, two, three
  compare   which is larger , the red shape or the blue shape ?      red, blue
  locate    where is the circle ?                                    the nine positions
  yesno     is there a red circle ?                                  yes, no

The question is drawn first, then the answer uniformly from the options, then a scene of which it is
true. So the text says nothing about the answer: without the picture, 1 / len(options) is the best.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rubric_jax.data.scenes import world


@dataclasses.dataclass(frozen=True)
class Instance:
    id: str
    kind: str  # describe, count, compare, locate, yesno
    text: str  # the instruction
    options: tuple[str, ...]  # answers that were equally likely given the text
    answer: str
    scene: world.Scene

    @property
    def facts(self) -> dict[str, Any]:
        """The ground truth as plain values; `from_facts` reads it back."""
        things = [
            {"size": t.size, "colour": t.colour, "shape": t.shape, "position": t.position}
            for t in self.scene.things
        ]
        return {
            "id": self.id,
            "kind": self.kind,
            "instruction": self.text,
            "options": list(self.options),
            "answer": self.answer,
            "things": things,
        }


def from_facts(facts: Mapping[str, Any]) -> Instance:
    """The instance of a row of facts.jsonl; ValueError names a missing field."""
    try:
        things = tuple(
            world.Thing(world.POSITIONS.index(t["position"]), t["size"], t["colour"], t["shape"])
            for t in facts["things"]
        )
        return Instance(
            id=facts["id"],
            kind=facts["kind"],
            text=facts["instruction"],
            options=tuple(facts["options"]),
            answer=facts["answer"],
            scene=world.Scene(things),
        )
    except KeyError as error:
        raise ValueError(
            f"No field {error} in the facts of {facts.get('id', 'an instance without id')!r}; "
            "they must be a row of a facts.jsonl written by scenes."
        ) from error


def instance(seed: int, index: int) -> Instance:
    """Instance `index` of a seed, whatever else is asked for."""
    # A text seed is hashed by Python itself (SHA-512), alike on every platform and version.
    rng = random.Random(f"scenes/{seed}/{index}")
    kind = rng.choice(tuple(QUESTIONS))
    text, options, truth = rng.choice(QUESTIONS[kind])
    answer = rng.choice(options)
    scene = world.random_scene(rng)
    while truth(scene) != answer:
        scene = world.random_scene(rng)
    return Instance(f"scenes-{seed}-{index}", kind, text, options, answer, scene)


class Question(NamedTuple):
    text: str
    options: tuple[str, ...]  # each is the answer in some scene
    # The answer in a scene, or None where the question does not apply (two red shapes, say).
    truth: Callable[[world.Scene], str | None]


def _describe(text: str) -> Question:
    return Question(text, world.NUMBERS[1:], lambda scene: world.NUMBERS[len(scene.things)])


def _count(word: str) -> Question:
    text = f"how many {word}{'s' if word in world.SHAPES else ' shapes'} are there ?"
    return Question(text, world.NUMBERS, lambda scene: world.NUMBERS[len(_having(scene, word))])


def _compare(relation: str, first: str, second: str) -> Question:
    def truth(scene: world.Scene) -> str | None:
        one, other = _only(scene, first), _only(scene, second)
        if one is None or other is None:
            return None
        a, b = _RANKS[relation](one), _RANKS[relation](other)
        return None if a == b else first if a > b else second

    text = f"which is {relation} , the {first} shape or the {second} shape ?"
    return Question(text, (first, second), truth)


def _locate(word: str) -> Question:
    def truth(scene: world.Scene) -> str | None:
        thing = _only(scene, word)
        return thing and thing.position

    return Question(f"where is the {_noun(word)} ?", world.POSITIONS, truth)


def _exists(colour: str, shape: str) -> Question:
    def truth(scene: world.Scene) -> str:
        return "yes" if _having(scene, colour, shape) else "no"

    return Question(f"is there a {colour} {shape} ?", world.YESNO, truth)


def _sized(word: str, size: str) -> Question:
    def truth(scene: world.Scene) -> str | None:
        thing = _only(scene, word)
        return thing and ("yes" if thing.size == size else "no")

    return Question(f"is the {_noun(word)} {size} ?", world.YESNO, truth)


def _having(scene: world.Scene, *words: str) -> list[world.Thing]:
    return [t for t in scene.things if all(w in (t.size, t.colour, t.shape) for w in words)]


def _only(scene: world.Scene, word: str) -> world.Thing | None:
    """The one thing that the word fits, or None if it is not one."""
    found = _having(scene, word)
    return found[0] if len(found) == 1 else None


def _noun(word: str) -> str:
    return word if word in world.SHAPES else f"{word} shape"


_RANKS = {  # the larger number wins
    "larger": lambda thing: world.SIZES.index(thing.size),
    "higher": lambda thing: -(thing.cell // 3),
    "further left": lambda thing: -(thing.cell % 3),
}
_DESCRIBE = (
    "describe every shape and say how many there are .",
    "what is in the picture , and how many shapes ?",
)
_NAMES = (*world.COLOURS, *world.SHAPES)

QUESTIONS: dict[str, tuple[Question, ...]] = {
    "describe": tuple(_describe(text) for text in _DESCRIBE),
    "count": tuple(_count(word) for word in (*world.SIZES, *_NAMES)),
    "compare": tuple(
        _compare(relation, *colours)
        for relation in _RANKS
        for colours in itertools.permutations(world.COLOURS, 2)
    ),
    "locate": tuple(_locate(word) for word in _NAMES),
    "yesno": (
        *(_exists(colour, shape) for colour in world.COLOURS for shape in world.SHAPES),
        *(_sized(word, size) for word in _NAMES for size in world.SIZES),
    ),
}
