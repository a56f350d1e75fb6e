"""Scenes on disk, in TRL's layout, as anybody's data.

  train.jsonl      preference pairs with reward vectors     heldout.jsonl   the same, other scenes
  demos.jsonl      one response, as `chosen`                facts.jsonl     the ground truth per id
  images/KEY.png   each distinct picture once
  instructions.jsonl, heldout_instructions.jsonl   what is asked in train.jsonl and heldout.jsonl,
                   with the right answer, a right response and the facts (see data/instructions.py)

A row of train.jsonl, shortened:

  {"id": "scenes-0-7", "images": ["images/0sre-4lbs.png"], "axis": "grounding",
   "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ".."}]}],
   "chosen": [{"role": "assistant", "content": [{"type": "text", "text": ".."}]}],
   "rejected": [..], "chosen_rewards": {"correctness": 1.0, ..}, "rejected_rewards": {..}}
"""

from __future__ import annotations

import hashlib
import itertools
import json
import pathlib
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rubric_jax.data.scenes import instances, language, world

# What a response is worth as a whole: right answers first, then evidence that is true.
WEIGHTS = {"correctness": 0.4, "grounding": 0.3, "completeness": 0.2, "format": 0.1}

# Of 16 equal parts of all scenes, those that each split draws on.
_PARTS = {"demos": range(0, 8), "train": range(8, 14), "heldout": range(14, 16)}


def demonstrations(
    seed: int, indices: Iterable[int], *, embellished: float = 0.0
) -> Iterator[dict[str, Any]]:
    """A response to each instance, in the columns of `pairs` without the rejected one.

    Args:
      seed, indices: which instances.
      embellished: share of responses, in [0, 1], that see one thing more than there is, after all
        that there are: a habit that a model takes over. The others are right.
    """
    if not 0 <= embellished <= 1:
        raise ValueError(f"embellished is {embellished}; it must be in [0, 1].")
    for index in indices:
        rng = random.Random(f"demos/{seed}/{index}")
        instance = instances.instance(seed, index)
        extra = rng.random() < embellished
        text = language.embellish(instance, rng) if extra else language.reference(instance)
        yield _demonstration(instance, text)


def asked(seed: int, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
    """The instruction of each instance, with all that is known about it."""
    for index in indices:
        instance = instances.instance(seed, index)
        yield {
            **_prompt(instance),
            "answer": instance.answer,
            "reference": language.reference(instance),
            "facts": instance.facts,
        }


def pairs(
    seed: int, indices: Iterable[int], *, quality: float = 0.5, gap: float = 0.1
) -> Iterator[dict[str, Any]]:
    """One preference pair per instance, with rewards; row `index` depends on nothing else.

    `chosen` has the higher weighted mean of the axes (WEIGHTS), by at least `gap`, and is strictly
    better on `axis`. On the other axes it may be worse.

    Args:
      seed, indices: which instances.
      quality: share of pairs whose `chosen` is the right response, in [0, 1]; the others set two
        flawed responses against each other.
      gap: least difference of the weighted means, in [0, 0.3]; larger pairs are easier.
    """
    if not 0 <= quality <= 1:
        raise ValueError(f"quality is {quality}; it must be in [0, 1].")
    if not 0 <= gap <= 0.3:
        raise ValueError(f"gap is {gap}; it must be in [0, 0.3].")
    for index in indices:
        rng = random.Random(f"pairs/{seed}/{index}")
        yield _pair(instances.instance(seed, index), rng, quality=quality, gap=gap)


def write(
    directory,
    *,
    demos: int,
    pairs: int,
    heldout: int,
    seed: int = 0,
    quality: float = 0.5,
    embellished: float = 0.0,
) -> None:
    """Writes the files above; the same arguments give the same bytes.

    A larger number of rows begins with the rows of a smaller one. Splits share no scene: to which
    split a scene may belong is decided by what is in it.

    Args:
      directory: made if it is not there; files of the same name are overwritten.
      demos, pairs, heldout: rows of demos.jsonl, train.jsonl and heldout.jsonl.
      quality: of the pairs, see `pairs`.
      embellished: share of demonstrations that see too much, see `demonstrations`.
    """
    counts = {"demos": demos, "train": pairs, "heldout": heldout}
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"{name} is to have {count} rows; it must be at least 0.")
    directory = pathlib.Path(directory)
    (directory / "images").mkdir(parents=True, exist_ok=True)
    indices = _split(seed, counts)
    rows = {
        "demos": demonstrations(seed, indices["demos"], embellished=embellished),
        "train": _pairs(seed, indices["train"], quality=quality),
        "heldout": _pairs(seed, indices["heldout"], quality=quality),
    }
    for name, split_rows in rows.items():
        _write_lines(directory / f"{name}.jsonl", split_rows)
    _write_lines(directory / "facts.jsonl", _facts(seed, indices))
    for name, split in (("instructions", "train"), ("heldout_instructions", "heldout")):
        _write_lines(directory / f"{name}.jsonl", asked(seed, indices[split]))
    scenes = {
        instance.scene.key: instance.scene
        for split in indices.values()
        for instance in (instances.instance(seed, index) for index in split)
    }
    for key, scene in scenes.items():
        world.draw(scene).save(directory / _image(key), format="PNG")


_pairs = pairs  # `write` has an argument of that name


def _split(seed: int, counts: Mapping[str, int]) -> dict[str, list[int]]:
    """The first indices of the seed whose scenes belong to each split."""
    found = {name: [] for name in counts}
    for index in itertools.count():
        missing = [name for name in counts if len(found[name]) < counts[name]]
        if not missing:
            return found
        key = instances.instance(seed, index).scene.key
        part = hashlib.sha256(key.encode()).digest()[0] % 16
        for name in missing:
            if part in _PARTS[name]:
                found[name].append(index)


def _facts(seed: int, indices: Mapping[str, list[int]]) -> Iterator[dict[str, Any]]:
    for split, split_indices in indices.items():
        for index in split_indices:
            instance = instances.instance(seed, index)
            yield {
                **instance.facts,
                "split": split,
                "image": _image(instance.scene.key),
                "reference": language.reference(instance),
            }


def _demonstration(instance: instances.Instance, text: str) -> dict[str, Any]:
    return {
        **_prompt(instance),
        "chosen": _response(text),
        "chosen_rewards": language.score(instance, text),
    }


def _pair(
    instance: instances.Instance, rng: random.Random, *, quality: float, gap: float
) -> dict[str, Any]:
    first_is_right = rng.random() < quality
    while True:
        texts = [_flawed(instance, rng) for _ in range(2)]
        if first_is_right:
            texts[0] = language.reference(instance)
        scores = [language.score(instance, text) for text in texts]
        means = [sum(WEIGHTS[axis] * score[axis] for axis in WEIGHTS) for score in scores]
        if abs(means[0] - means[1]) >= max(gap, 1e-6):
            break
    win, lose = (0, 1) if means[0] > means[1] else (1, 0)
    axes = [axis for axis in language.AXES if scores[win][axis] > scores[lose][axis]]
    return {
        **_prompt(instance),
        "chosen": _response(texts[win]),
        "rejected": _response(texts[lose]),
        "chosen_rewards": scores[win],
        "rejected_rewards": scores[lose],
        "axis": rng.choice(axes),
    }


def _flawed(instance: instances.Instance, rng: random.Random) -> str:
    axes = rng.sample(language.AXES, rng.choices((1, 2, 3), weights=(5, 4, 1))[0])
    return language.corrupt(instance, axes, rng)


def _prompt(instance: instances.Instance) -> dict[str, Any]:
    content = [{"type": "image"}, {"type": "text", "text": instance.text}]
    return {
        "id": instance.id,
        "prompt": [{"role": "user", "content": content}],
        "images": [_image(instance.scene.key)],
    }


def _response(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def _image(key: str) -> str:
    return f"images/{key}.png"


def _write_lines(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
