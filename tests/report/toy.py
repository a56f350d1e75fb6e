"""A run that never ran: scenes, flawed responses, the oracle's real verdicts, made-up training.

python -m tests.report.toy DIR [instances] [responses]
"""

import json
import math
import pathlib
import random
import sys

import numpy as np

from rubric_jax.data import scenes
from rubric_jax.judges import oracle, verdicts
from rubric_jax.report import browse
from rubric_jax.rubrics import records

AXES = ("correctness", "grounding", "completeness", "format")
WEIGHTS = {"correctness": 3, "grounding": 2, "completeness": 2, "format": 1}


def write(directory, *, instances=20, responses=8, rounds=2, held_out=240, steps=200):
    """Writes the run, instructions and pictures included."""
    root = pathlib.Path(directory)
    (root / "data" / "images").mkdir(parents=True)
    asked = [scenes.instance(0, index) for index in range(instances)]
    rows = [_instruction(root / "data", instance) for instance in asked]
    _lines(root / "data" / "instructions.jsonl", rows)
    _json(root / "config.json", _config(root, responses))
    keys = {i.id: browse_key(root / "data", i) for i in asked}
    rubrics = [oracle.rubric(instance, keys[instance.id]) for instance in asked]
    _lines(root / "rubrics.jsonl", [json.loads(records.to_json(r)) for r in rubrics])
    _manifest(root / "rubrics.json", "rubrics", {"instances": instances, "written": instances})
    _evaluate(root / "base", "base", 0, held_out)
    for number in range(1, rounds + 1):
        _round(root / f"round_{number}", number, asked, rubrics, responses)
        _train(root / f"round_{number}" / "train", number, steps)
        _evaluate(root / f"round_{number}", f"round_{number}", number, held_out)
    _json(root / "weightings.json", _weightings())
    return root


def lookup(root):
    """What `browse` is given in place of the instructions of the config."""

    def look(ids):
        for line in (root / "data" / "instructions.jsonl").read_text().splitlines():
            row = json.loads(line)
            if row["id"] in ids:
                text = row["prompt"][0]["content"][1]["text"]
                refs = (browse.images.Ref(path=str(root / "data" / row["images"][0])),)
                yield row["id"], browse.Asked(text, refs, row["answer"], row["reference"])

    return look


def browse_key(data, instance):
    picture = (data / "images" / f"{instance.scene.key}.png").read_bytes()
    return records.instance_key([picture], instance.text)


def _config(root, responses):
    return {
        "model": {"family": "llava", "checkpoint": "toy/llava", "dtype": "float32"},
        "data": {"axes": list(AXES)},
        "objective": {"modpo": {"weight": 1.0, "beta": 0.1}},
        "pool": {"path": str(root / "data" / "instructions.jsonl"), "split": "train"},
        "sample": {"count": responses, "temperature": 0.7},
        "judging": {"judge": {"judge": "oracle"}},
        "pair": {
            "recipe": {"recipe": "rubric"},
            "aggregation": {"aggregation": "weighted_mean"},
        },
        "seed": 0,
    }


def _instruction(data, instance):
    name = f"images/{instance.scene.key}.png"
    scenes.draw(instance.scene).save(data / name)
    content = [{"type": "image"}, {"type": "text", "text": instance.text}]
    return {
        "id": instance.id,
        "prompt": [{"role": "user", "content": content}],
        "images": [name],
        "answer": instance.answer,
        "reference": scenes.reference(instance),
    }


def _round(folder, number, asked, rubrics, responses):
    rng = random.Random(f"round/{number}")
    judge = oracle.oracle()
    samples, judged, pairs, skipped = [], [], [], {}
    for instance, rubric in zip(asked, rubrics):
        texts = [_text(instance, rng, skill=0.25 + 0.15 * number) for _ in range(responses)]
        ask = records.Instance(instruction=instance.text)
        requests = [verdicts.Request(str(k), ask, text, rubric) for k, text in enumerate(texts)]
        said = [v for _, v in judge.score(requests, verdicts.no_journal)]
        said = [_verdict(rubric, v.scores, rng) for v in said]
        samples.append(
            {"id": instance.id, "key": rubric.key, "responses": list(map(_sample, texts))}
        )
        rubric_json = json.loads(records.to_json(rubric))
        judged.append(
            {"id": instance.id, "key": rubric.key, "rubric": rubric_json, "verdicts": said}
        )
        row = _pair(instance, rubric, texts, said)
        if isinstance(row, str):
            skipped[row] = skipped.get(row, 0) + 1
        else:
            pairs.append(row)
    for name, rows in (("samples", samples), ("verdicts", judged), ("pairs", pairs)):
        _lines(folder / f"{name}.jsonl", rows)
    count = len(samples)
    _manifest(folder / "samples.json", "sample", {"instances": count, "cut": 3})
    _manifest(folder / "verdicts.json", "judge", {"verdicts": count * responses, "stored": 12})
    counts = {"groups": count, "rows": len(pairs), "skipped": skipped, "left_out": {"tie": 9}}
    _manifest(folder / "pairs.json", "pair", counts)


def _text(instance, rng, *, skill):
    if rng.random() < skill:
        return scenes.reference(instance)
    count = rng.choices((1, 2, 3), weights=(4, 4, 2))[0]
    return scenes.corrupt(instance, rng.sample(scenes.AXES, count), rng)


def _sample(text):
    words = text.split()
    return {"text": text, "ids": list(range(len(words))), "logps": [-0.1] * len(words)}


def _verdict(rubric, scores, rng):
    """As a remote judge gives it: with reasons, and now and then of no use."""
    luck = rng.random()
    if luck < 0.01:
        return {"status": "refused", "scores": {}, "reasons": {}, "problems": ["declined"]}
    if luck < 0.025:
        return {"status": "unparsable", "scores": {}, "reasons": {}, "problems": ["no JSON"]}
    words = {0.0: "Not met: ", 0.5: "Partly met: ", 1.0: "Met: "}
    reasons = {c.id: words[scores[c.id]] + c.text.lower() for c in rubric.criteria}
    if luck < 0.045:
        scores = {k: v for k, v in scores.items() if k != "format"}
        return {
            "status": "partial",
            "scores": scores,
            "reasons": reasons,
            "problems": ["missing: format"],
        }
    return {"status": "scored", "scores": dict(scores), "reasons": reasons, "problems": []}


def _total(rubric, verdict):
    if verdict["status"] != "scored":
        return None
    weight = sum(c.weight for c in rubric.criteria)
    return sum(c.weight * verdict["scores"][c.id] for c in rubric.criteria) / weight


def _pair(instance, rubric, texts, said):
    """The best against the worst response, or why there is no pair."""
    totals = {k: t for k, v in enumerate(said) if (t := _total(rubric, v)) is not None}
    if len(totals) < 2:
        return "fewer than two scored responses"
    win, lose = max(totals, key=totals.get), min(totals, key=totals.get)
    gap = totals[win] - totals[lose]
    if gap == 0:
        return "all responses equal"
    if gap < 0.35:
        return "gap below the margin"
    gaps = {c.axis: said[win]["scores"][c.id] - said[lose]["scores"][c.id] for c in rubric.criteria}
    return {
        "id": f"{instance.id}/0",
        "prompt": [{"role": "user", "content": [{"type": "text", "text": instance.text}]}],
        "images": [f"../data/images/{instance.scene.key}.png"],
        "chosen": texts[win],
        "rejected": texts[lose],
        "axis": max(gaps, key=gaps.get),
        "mined": {
            "instance": instance.id,
            "sample": {"chosen": win, "rejected": lose},
            "total": {"chosen": totals[win], "rejected": totals[lose]},
        },
    }


def _train(folder, number, steps):
    rng = np.random.default_rng(number)
    rows = []
    for step in range(1, steps + 1):
        done = step / steps
        learned = 1 - math.exp(-4 * done)
        noise = rng.normal(0, 1, 4)
        row = {
            "step": step,
            "loss": 0.69 - 0.3 * learned + 0.03 * noise[0],
            "rewards/accuracies": min(1.0, 0.5 + 0.38 * learned + 0.05 * noise[1]),
            "rewards/margins": 1.9 * learned + 0.15 * noise[2],
            "rewards/chosen": 0.3 * learned + 0.05 * noise[2],
            "rewards/rejected": -1.6 * learned + 0.1 * noise[2],
            "grad_norm": 1.5 - learned + abs(0.2 * noise[3]),
            "learning_rate": 1e-6 * min(1, done * 30) * (0.5 + 0.5 * math.cos(math.pi * done)),
            "tokens_per_second": 5200 + 120 * noise[0],
        }
        if step % max(steps // 8, 1) == 0:
            row |= {
                "eval/loss": 0.7 - 0.26 * learned,
                "eval/rewards/accuracies": 0.5 + 0.3 * learned,
            }
        rows.append(row)
    _lines(folder / "metrics.jsonl", rows)


def _evaluate(folder, policy, number, n):
    base = {"correctness": 0.41, "grounding": 0.63, "completeness": 0.58, "format": 0.93}
    gain = {"correctness": 0.13, "grounding": 0.05, "completeness": 0.06, "format": 0.005}
    means = {axis: base[axis] + gain[axis] * number for axis in AXES}
    reward = sum(WEIGHTS[axis] * means[axis] for axis in AXES) / sum(WEIGHTS.values())
    measures = {"reward": _around(reward, 0.025, n)}
    measures |= {f"reward/{axis}": _around(mean, 0.035, n) for axis, mean in means.items()}
    measures["all essentials"] = _around(0.3 + 0.11 * number, 0.06, n)
    measures["right answer"] = _around(means["correctness"], 0.06, n)
    measures["response tokens"] = _around(24.1 + 0.6 * number, 0.9, n)
    measures["finished"] = _around(0.99, 0.008, n)
    if number:
        measures["pair accuracy"] = _around(0.68 + 0.05 * number, 0.03, n)
    _json(folder / "eval.json", {"policy": policy, "instances": n, "measures": measures})


def _around(mean, half, n):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def _weightings():
    points = []
    for i in range(5):
        w = i / 4
        points.append(_point(f"{w:g}", "modpo", w, 0.55 + 0.25 * w, 0.84 - 0.22 * w**2))
        points.append(_point(f"{w:g}", "soup", w, 0.52 + 0.25 * w, 0.83 - 0.27 * w))
    points.append(_point("summed", "dpo", 0.5, 0.63, 0.71))
    return {"axes": ["correctness", "grounding"], "points": points}


def _point(name, kind, weight, first, second):
    rewards = {"correctness": _around(first, 0.02, 240), "grounding": _around(second, 0.02, 240)}
    weights = {"correctness": weight, "grounding": 1 - weight}
    return {"name": name, "kind": kind, "weights": weights, "rewards": rewards}


def _manifest(path, stage, counts):
    value = {"stage": stage, "version": "0.1.0", "config": {}, "inputs": {}, "counts": counts}
    _json(path, value | {"finished": True})


def _json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    write(sys.argv[1], **dict(zip(("instances", "responses"), map(int, sys.argv[2:]))))
