"""pair: samples and verdicts -> preference data in TRL's layout, which `train` reads as anybody's.

{"id": "scenes-0-7/0", "prompt": [...], "images": ["../data/images/7.png"], "chosen": [...],
 "rejected": [...], "chosen_rewards": {"correctness": 1.0}, "rejected_rewards": {...},
 "axis": "correctness", "weight": 1.0, "margin": 0.0,
 "mined": {"instance": "scenes-0-7", "sample": {"chosen": 3, "rejected": 0},
           "total": {"chosen": 0.9, "rejected": 0.4}}}
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rubric_jax import config as config_lib
from rubric_jax import recipes
from rubric_jax.data import images, instructions
from rubric_jax.recipes import groups as groups_lib
from rubric_jax.rubrics import aggregation
from rubric_jax.stages import files


def aggregate(spec: Mapping[str, Any]) -> Callable[..., aggregation.Rewards]:
    """The aggregation of a config: {"aggregation": name, <knobs>}."""
    knobs = dict(spec)
    name = knobs.pop("aggregation", "")
    function = config_lib.bind(aggregation.AGGREGATIONS, name, knobs, what="aggregation")
    knobs = config_lib.check(function, knobs, what=f"aggregation {name!r}")
    return functools.partial(function, **knobs)


def groups(
    asked: Mapping[str, instructions.Instruction],
    judged: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]],
    axes: Sequence[str],
    aggregation_spec: Mapping[str, Any],
) -> list[groups_lib.Group]:
    """Groups of judged responses, in the order of the instructions.

    Args:
      asked: instructions by id.
      judged: (policy, samples by id, verdicts by id) of each policy; "" = the one in training.
        Only instructions that all of them answered make groups.
      axes: the run's reward axes.
      aggregation_spec: {"aggregation": name, <knobs>}.
    """
    items = []
    for ident, task in asked.items():
        if not all(ident in samples and ident in verdicts for _, samples, verdicts in judged):
            continue
        found = [
            response
            for policy, samples, verdicts in judged
            for response in _responses(policy, samples[ident], verdicts[ident])
        ]
        items.append(
            {
                "id": ident,
                "instruction": task.text,
                "answer": task.answer,
                "reference": task.reference,
                "source": task.source,
                "rubric": judged[0][2][ident]["rubric"],
                "responses": tuple(found),
            }
        )
    return groups_lib.build(items, axes, aggregate(aggregation_spec))


def write_pairs(
    spec: Mapping[str, Any],
    found: Sequence[groups_lib.Group],
    asked: Mapping[str, instructions.Instruction],
    axes: Sequence[str],
    file: files.File,
    *,
    seed: int,
) -> dict[str, Any]:
    """Mines pairs (or lists) and writes them; returns the counts.

    Raises:
      ValueError: a bad spec, or not one row: the reasons are named with their numbers.
    """
    recipe = recipes.build(spec)
    if files.begin(file):
        return files.read_manifest(file.path)["counts"]
    mined = recipe(found, axes, seed=seed)
    counts = {
        "groups": mined.groups,
        "rows": len(mined.rows),
        "skipped": dict(mined.skipped.most_common()),
        "left_out": dict(mined.left_out.most_common()),
    }
    print("\n".join(mined.summary()))
    if not mined.rows:
        reasons = "\n  ".join(f"{n} x {why}" for why, n in counts["skipped"].items())
        raise ValueError(
            f"No pair among the responses to {mined.groups} instructions:\n  {reasons}\n"
            "Sample more or warmer responses (config.sample.count, temperature), lower the "
            "recipe's margin, or look at the verdicts."
        )
    root = os.path.dirname(os.path.abspath(file.path))
    files.write_whole(file, _rows(mined.rows, asked, root), counts, reasons=mined.reasons)
    return counts


def unseeing(
    starts: Sequence[recipes.continuation.Start], asked: Mapping[str, instructions.Instruction]
) -> Iterator[dict[str, Any]]:
    """Instructions without pictures that end in the first part of a response, to be continued."""
    for start in starts:
        prompt = asked[start.group].prompt
        if isinstance(prompt, str):
            blind: str | list = f"{prompt.replace('<image>', '').strip()} {start.first}"
        else:
            blind = [*map(_without_images, prompt), {"role": "assistant", "content": start.first}]
        yield {"id": start.group, "prompt": blind, "images": [], "first": start.first}


def with_continued(
    found: Sequence[groups_lib.Group],
    starts: Sequence[recipes.continuation.Start],
    samples: Mapping[str, Mapping[str, Any]],
) -> list[groups_lib.Group]:
    """Groups with the continuations as further responses, which have no verdict."""
    firsts = {start.group: start.first for start in starts}
    return [
        groups_lib.extend(group, _continued(firsts[group.id], samples[group.id]))
        if group.id in samples and group.id in firsts
        else group
        for group in found
    ]


def _continued(first: str, sample: Mapping[str, Any]) -> list[groups_lib.Response]:
    found = []
    for response in sample["responses"]:
        text = response["text"]
        between = "" if not text or text[0].isspace() else " "  # tokenizers drop leading spaces
        found.append(
            groups_lib.Response(
                text=first + between + text,
                finished=response["finished"],
                tokens=response["tokens"],
                policy=groups_lib.CONTINUED,
            )
        )
    return found


def _without_images(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, list):
        content = [block for block in content if block.get("type") != "image"]
    return {**message, "content": content}


def _responses(policy, samples, verdicts) -> Iterator[groups_lib.Response]:
    for response, verdict in zip(samples["responses"], verdicts["verdicts"], strict=True):
        yield groups_lib.Response(
            text=response["text"],
            finished=response["finished"],
            tokens=response["tokens"],
            policy=policy,
            scores=verdict["scores"] if verdict["status"] in ("scored", "partial") else None,
        )


def _rows(
    rows: Sequence[groups_lib.Row], asked: Mapping[str, instructions.Instruction], root: str
) -> Iterator[dict[str, Any]]:
    count: dict[str, int] = {}
    for row in rows:
        task = asked[row.group]
        number = count[row.group] = count.get(row.group, -1) + 1
        written: dict[str, Any] = {
            "id": f"{row.group}/{number}",
            "prompt": task.prompt,
            "images": [image(ref, root) for ref in task.images],
        }
        for name, text in row.branches.items():
            written[name] = _turn(task.prompt, text)
            if row.rewards.get(name):
                written[f"{name}_rewards"] = row.rewards[name]
        if row.axis is not None:
            written["axis"] = row.axis
        mined = {"instance": row.group, "sample": dict(row.sample), "total": dict(row.total)}
        yield {**written, "weight": row.weight, "margin": row.margin, "mined": mined}


def _turn(prompt: str | list, text: str) -> str | list:
    """A response in the form of its prompt."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def image(ref: images.Ref, root: str) -> str:
    """The path of a picture from `root`; one that came as bytes becomes a file below it."""
    if ref.path:
        return os.path.relpath(ref.path, root)
    # Pictures that came as bytes get files of their own beside the pairs.
    data = images.read(ref)
    path = os.path.join("images", images.digest(data)[:32])
    full = os.path.join(root, path)
    if not os.path.exists(full):
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full + ".tmp", "wb") as stream:
            stream.write(data)
        os.replace(full + ".tmp", full)
    return path
