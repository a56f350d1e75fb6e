"""Which front of two axes do MODPO, DPO on the weighted sum, and reward soups reach?

  python experiments/pareto/run.py --workdir=runs/pareto

On `scenes`, with the toy LLaVA. A policy that mentions more describes more (completeness) and gets
more wrong (grounding). All policies start from one base, read the same pairs and take the same
number of updates; each kind is one front, so it compiles one step. Killed, it goes on with what is
missing. Writes results.json, front.svg and the tables of README.md beside this file (or below
--out), and WORKDIR/seed_0/shared/weightings.json with a page to look at.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # runs from a checkout as it is

import jax

from experiments.pareto import summary
from rubric_jax import config as config_lib
from rubric_jax import models, quickstart, stages
from rubric_jax.data import instructions, scenes
from rubric_jax.models import soup
from rubric_jax.recipes import groups as groups_lib
from rubric_jax.recipes import rubric
from rubric_jax.stages import judge as judge_stage
from rubric_jax.stages import pair as pair_stage
from rubric_jax.stages import sample as sample_stage
from rubric_jax.train import front

AXES = ("grounding", "completeness")
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of grounding; the rest is completeness'
PAIR = {"win": "chosen", "lose": "rejected", "beta": 0.1}
# So steep that each pair is ordered by the sign of its weighted reward gap, and a tie by nothing:
# with all weight on one axis this is DPO on that axis.
STEEP = 1e4
# Beside the preference term, as in the quickstart: without it every kind of policy ends below the
# base on both axes.
SHARE = 0.2  # of the preference term; the anchor counts 1
ANCHOR = {"nll": {"weight": 1.0, "on": "chosen"}}
LEARNING_RATE = 5e-4
MODEL = {"width": 96, "depth": 3, "vision_width": 64, "vision_depth": 2}


@dataclasses.dataclass(frozen=True)
class Size:
    demonstrations: int = 4000
    instructions: int = 400
    held_out: int = 400
    warm_up: int = 300  # steps of the base policy
    updates: int = 60  # steps of every policy
    pairs: int = 800  # rows of both axes together, at most
    batch: int = 32


SIZES = {
    "full": Size(),
    "tiny": Size(
        demonstrations=64, instructions=24, held_out=12, warm_up=6, updates=3, pairs=48, batch=8
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--size", choices=SIZES, default="full")
    args = parser.parse_args()
    # Every policy is sampled by the same program.
    jax.config.update("jax_compilation_cache_dir", str((args.workdir / "compiled").absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    size, started = SIZES[args.size], time.monotonic()
    settings = {**dataclasses.asdict(size), "model": MODEL, "beta": PAIR["beta"], "axes": AXES}
    settings |= {"weight": SHARE, "anchor": ANCHOR, "learning_rate": LEARNING_RATE}
    results = {"settings": settings, "seeds": []}
    for seed in range(args.seeds):
        results["seeds"].append(one_seed(args.workdir / f"seed_{seed}", seed, size))
    results["seconds"] = round(time.monotonic() - started)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    summary.write(results, args.out)


def one_seed(root: pathlib.Path, seed: int, size: Size) -> dict:
    """All policies of a seed: {"points": [...], "rows": pairs, "seconds": {kind: of training}}."""
    shared = share(root, seed, size)
    rows = write_pairs(shared, root / "pairs.jsonl", seed, size)
    config = dataclasses.replace(
        shared.config,
        data=dataclasses.replace(shared.config.data, path=str(root / "pairs.jsonl")),
        train=dataclasses.replace(shared.config.train, steps=size.updates),
    )
    policies, seconds = {}, {}
    for kind, objective in (("modpo", modpo), ("dpo on the sum", dpo)):
        shares = SHARES if kind == "modpo" else (0.0, *SHARES, 1.0)
        objectives = {f"{s:g}": objective(s) for s in shares}
        folders, seconds[kind] = trained(config, objectives, root / kind.replace(" ", "_"))
        policies |= {(kind, s): folders[f"{s:g}"] for s in shares}
    ends = [policies.pop(("dpo on the sum", s)) for s in (1.0, 0.0)]
    policies |= {("dpo on one axis", 1.0): ends[0], ("dpo on one axis", 0.0): ends[1]}
    for s in SHARES:
        policies["soup", s] = mix(ends, (s, 1 - s), root / "soup" / f"{s:g}", shared.config)
    points = [measured(shared, "base", None, pathlib.Path(shared.config.model.checkpoint))]
    points += [measured(shared, kind, s, folder) for (kind, s), folder in policies.items()]
    write_weightings(shared, points)
    return {"seed": seed, "rows": rows, "seconds": seconds, "points": points}


def trained(config, objectives: dict, workdir: pathlib.Path) -> tuple[dict, float]:
    """(folders of the policies, seconds of their training), compilation included."""
    file, started = workdir / "seconds.json", time.monotonic()
    folders = front.run(config, objectives, str(workdir))
    if not file.exists():  # else nothing was trained now
        file.write_text(json.dumps(round(time.monotonic() - started, 1)))
    return folders, json.loads(file.read_text())


def modpo(share: float) -> dict:
    return {"modpo": {"weight": SHARE, **PAIR, "weights": weights_of(share)}, **ANCHOR}


def dpo(share: float) -> dict:
    pair = {"term": "smpo", **PAIR, "weights": weights_of(share), "scale": STEEP}
    return {"dpo": {"weight": SHARE, **pair}, **ANCHOR}


def weights_of(share: float) -> dict[str, float]:
    """Over all axes of the scenes; `share` of them on grounding."""
    own = dict(zip(AXES, (share, round(1 - share, 6)), strict=True))
    return {axis: own.get(axis, 0.0) for axis in scenes.AXES}


def share(root: pathlib.Path, seed: int, size: Size) -> stages.Run:
    """What all policies of a seed share: base, rubrics, responses and verdicts."""
    if not (root / "data" / "facts.jsonl").exists():
        sizes = {"demos": size.demonstrations, "pairs": size.instructions, "heldout": size.held_out}
        scenes.write(root / "data", **sizes, seed=seed)
    if not (root / "model" / "model.safetensors").exists():
        scenes.write_model(root / "model", seed=seed, **MODEL)
    made = quickstart.rdpo(root, quickstart.base_policy(root, size.warm_up))
    config = dataclasses.replace(
        made,
        judging=dataclasses.replace(made.judging, store=str(root / "verdicts.sqlite")),
        pool=dataclasses.replace(made.pool, rubrics=str(root / "rubrics.jsonl")),
        objective=modpo(0.5),
        optimizer=dataclasses.replace(made.optimizer, learning_rate=LEARNING_RATE),
        train=dataclasses.replace(made.train, batch_size=size.batch, tensorboard=False),
        seed=seed,
    )
    run = stages.Run(config, str(root / "shared"))
    run.begin()
    run.rubrics()
    run.sample(1)
    run.judge(1)
    return run


def write_pairs(shared: stages.Run, out: pathlib.Path, seed: int, size: Size) -> dict[str, int]:
    """Pairs of both axes by the recipe `rubric`, each axis by itself in place of the total."""
    asked = {task.id: task for task in instructions.read(shared.config.pool.path)}
    samples = sample_stage.read_samples(shared.path(1, "samples.jsonl"))
    verdicts = judge_stage.read_verdicts(shared.path(1, "verdicts.jsonl"), samples)
    groups = pair_stage.groups(
        asked, [("", samples, verdicts)], scenes.AXES, shared.config.pair.aggregation
    )
    rows, counts = [], {}
    for axis in AXES:
        own = [dataclasses.replace(g, total=g.axes[:, scenes.AXES.index(axis)]) for g in groups]
        mined = rubric.rubric(
            own, scenes.AXES, seed=seed, unfailed=False, margin=0.2, budget=size.pairs // 2
        )
        print(axis, *mined.summary(), sep="\n")
        counts[axis] = len(mined.rows)
        rows += [as_written(row, axis, asked[row.group], out.parent) for row in mined.rows]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return counts


def as_written(row: groups_lib.Row, axis: str, task, root: pathlib.Path) -> dict:
    """TRL's layout, as the stage `pair` writes it."""
    found = {
        "id": f"{row.group}/{axis}/{row.sample['chosen']}",
        "prompt": task.prompt,
        "images": [os.path.relpath(ref.path, root) for ref in task.images],
        "axis": axis,
    }
    for name, text in row.branches.items():
        turn = text if isinstance(task.prompt, str) else [{"role": "assistant", "content": text}]
        found |= {name: turn, f"{name}_rewards": dict(row.rewards[name])}
    return found


def mix(members, weights, folder: pathlib.Path, config: config_lib.Config) -> pathlib.Path:
    if not (folder / "model.safetensors").exists():
        vlm = models.build(config.model.family, members[0])
        soup.write(folder, members, weights, vlm)
    return folder


def measured(shared: stages.Run, kind: str, share: float | None, policy: pathlib.Path) -> dict:
    """A point: mean and interval per axis on held-out instructions, and the rewards behind it."""
    name = kind if share is None else f"{kind} {share:g}"
    folder = pathlib.Path(shared.workdir).parent / "measured" / name.replace(" ", "_")
    config = dataclasses.replace(
        shared.config, model=dataclasses.replace(shared.config.model, checkpoint=str(policy))
    )
    run = stages.Run(config, str(folder))
    run.begin()
    found = run.eval(0)
    rewards = {axis: found["measures"][f"reward/{axis}"] for axis in AXES}
    return {
        "name": name,
        "kind": kind,
        "weights": {} if share is None else dict(zip(AXES, (share, round(1 - share, 6)))),
        "rewards": {
            axis: {k: r[k] for k in ("mean", "low", "high")} for axis, r in rewards.items()
        },
        "ids": found["per_instance"]["id"],
        "per_instance": {axis: found["per_instance"][f"reward/{axis}"] for axis in AXES},
    }


def write_weightings(shared: stages.Run, points: list[dict]) -> None:
    """weightings.json of the shared run, and its page."""
    keys = ("name", "kind", "weights", "rewards")
    value = {"axes": AXES, "points": [{key: point[key] for key in keys} for point in points]}
    path = pathlib.Path(shared.workdir) / "weightings.json"
    path.write_text(json.dumps(value, indent=1) + "\n")
    print(shared.report())


if __name__ == "__main__":
    main()
