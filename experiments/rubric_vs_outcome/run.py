"""Does a rubric choose better preference pairs than an outcome, on equal terms?

  python experiments/rubric_vs_outcome/run.py --workdir=runs/rubric_vs_outcome      all of it
  python experiments/rubric_vs_outcome/run.py --workdir=... --arms=rubric,outcome --seeds=2

Every arm starts from the same base policy of its seed, reads the same responses (8 per instruction,
sampled once per seed), gets the same number of pairs at most and exactly as many updates; only what
chooses the pairs differs. Each is trained with DPO and with MPO and measured on held-out scenes by
their ground truth. Killed, it goes on; finished parts are never computed again. Started several
times at once, on one machine or on several with one --workdir, the processes share the arms out.

Writes results.json, the plot and the tables of README.md beside this file when all arms of at least
five seeds are done, and below the work directory (or --out) otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # runs from a checkout as it is

import jax
import tqdm

from experiments.rubric_vs_outcome import summary
from rubric_jax import config as config_lib
from rubric_jax import judges, quickstart, stages
from rubric_jax.data import instructions, scenes
from rubric_jax.judges import oracle
from rubric_jax.rubrics import pool as pool_lib
from rubric_jax.stages import sample as sample_stage

DEMONSTRATIONS, INSTRUCTIONS, HELD_OUT = 4000, 800, 400
WARM_UP, UPDATES, PAIRS = 400, 50, 800  # steps, steps over all rounds, rows at most
BATCH_SIZE, LEARNING_RATE = 16, 3e-4
SIZE = {"width": 96, "depth": 3, "vision_width": 96, "vision_depth": 2}

PAIR = {"win": "chosen", "lose": "rejected", "beta": 0.1}
NLL = {"weight": 1.0, "on": "chosen"}
LOSSES = {
    "dpo": {"dpo": PAIR},
    "mpo": {"dpo": {"weight": 0.8, **PAIR}, "bco": {"weight": 0.2, **PAIR}, "nll": NLL},
}
# The rubric as margins: in place of each loss's DPO part.
_MODPO = {**PAIR, "weights": quickstart.WEIGHTS}
MODPO_LOSSES = {
    "dpo": {"modpo": _MODPO},
    "mpo": {"modpo": {"weight": 0.8, **_MODPO}, "bco": {"weight": 0.2, **PAIR}, "nll": NLL},
}

# Words of the scenes that can stand for one another: what an edit may get wrong.
SLOTS = (
    ("small", "large"),
    ("red", "blue", "green", "yellow"),
    ("circle", "square", "triangle"),
    ("top", "middle", "bottom"),
    ("left", "center", "right"),
    ("zero", "one", "two", "three"),
    ("yes", "no"),
)


@dataclasses.dataclass(frozen=True)
class Arm:
    recipe: dict
    judge: str = "oracle"
    modpo: bool = False
    rounds: int = 1
    other: bool = False  # reads responses of another policy too


RUBRIC = {"recipe": "rubric", "margin": 0.1, "budget": PAIRS}
ARMS = {
    "outcome": Arm({"recipe": "outcome", "budget": PAIRS}),
    "holistic": Arm(
        {"recipe": "holistic", "margin": 0.2, "budget": PAIRS}, judge="oracle_holistic"
    ),
    "style_constrained": Arm({"recipe": "style_constrained", "slots": SLOTS, "budget": PAIRS}),
    "perturbation": Arm({"recipe": "perturbation", "slots": SLOTS, "swaps": 2, "budget": PAIRS}),
    "cross_model": Arm({"recipe": "cross_model", "margin": 0.1, "budget": PAIRS}, other=True),
    "random": Arm({"recipe": "random", "budget": PAIRS}),
    "shuffled_rubric": Arm({**RUBRIC, "recipe": "shuffled_rubric", "unfailed": False}),
    "rubric": Arm(RUBRIC),
    "rubric_modpo": Arm(RUBRIC, modpo=True),
    "rubric_2_rounds": Arm(RUBRIC, rounds=2),
}


def main() -> None:
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, help="here for all arms, else the workdir")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--losses", default=",".join(LOSSES))
    args = parser.parse_args()
    whole = args.arms == ",".join(ARMS) and args.losses == ",".join(LOSSES) and args.seeds >= 5
    out = args.out or (here if whole else args.workdir)
    for name in args.arms.split(","):
        if name not in ARMS:
            raise SystemExit(f"Unknown arm {name!r}; it must be {config_lib.one_of(name, ARMS)}")
    # The same few programs run hundreds of times.
    jax.config.update("jax_compilation_cache_dir", str((args.workdir / "compiled").absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    roots = [args.workdir / f"seed_{seed}" for seed in range(args.seeds)]
    arms = [(arm, loss) for arm in args.arms.split(",") for loss in args.losses.split(",")]
    first = os.getpid() % args.seeds  # processes that share the work begin at different ends
    for seed in [*range(first, args.seeds), *range(first)]:
        run_seed(roots[seed], seed, roots[seed - 1], arms)
    results = collect(roots, arms)
    missing = len(roots) * (len(arms) + 1) - len(results["runs"])
    if missing:
        print(
            f"{missing} runs are in the hands of other processes; the last to end writes results."
        )
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    summary.write(results, out)


def run_seed(root: pathlib.Path, seed: int, other: pathlib.Path, arms: list) -> None:
    """Whatever of a seed is neither done nor in another process's hands."""
    # The other policy is the base of another seed: other weights, other demonstrations.
    bases = [base_policy(where, int(where.name.removeprefix("seed_"))) for where in (root, other)]
    with locked(root / "shared"):
        shared = share(root, seed, *bases)
        keep(root / "shared", lambda: measured(seed, "base", "none", shared.eval(0), 0))
        keep(root / "judges", lambda: close_pairs(shared, seed))
    for arm, loss in tqdm.tqdm(arms, desc=f"arms of seed {seed}"):
        folder = root / f"{arm}-{loss}"
        with locked(folder, wait=False) as mine:
            if mine:
                keep(folder, functools.partial(train, shared, seed, arm, loss))


def keep(folder: pathlib.Path, make: Callable[[], Any]) -> None:
    """Makes FOLDER/result.json, unless it is there."""
    path = folder / "result.json"
    if not path.exists():
        value = make()
        folder.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".tmp").write_text(json.dumps(value, indent=1) + "\n")
        path.with_suffix(".tmp").replace(path)


@contextlib.contextmanager
def locked(folder: pathlib.Path, wait: bool = True) -> Iterator[bool]:
    """True while no other process is at this folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def collect(roots: list[pathlib.Path], arms: list) -> dict:
    """What has been measured so far."""
    found: dict[str, Any] = {"settings": settings(), "runs": [], "judges": []}
    for root in roots:
        for name in ("shared", *(f"{arm}-{loss}" for arm, loss in arms)):
            path = root / name / "result.json"
            found["runs"] += [json.loads(path.read_text())] if path.exists() else []
        found["judges"] += json.loads((root / "judges" / "result.json").read_text())
    return found


def settings() -> dict:
    return {
        "demonstrations": DEMONSTRATIONS,
        "instructions": INSTRUCTIONS,
        "held_out": HELD_OUT,
        "warm_up_steps": WARM_UP,
        "updates": UPDATES,
        "pairs_at_most": PAIRS,
        "model": SIZE,
        "responses_per_instruction": 8,
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
    }


def base_policy(root: pathlib.Path, seed: int) -> pathlib.Path:
    """Data and the warmed-up toy model of a seed."""
    with locked(root / "base"):
        if not (root / "data" / "facts.jsonl").exists():
            sizes = {"demos": DEMONSTRATIONS, "pairs": INSTRUCTIONS, "heldout": HELD_OUT}
            scenes.write(root / "data", **sizes, seed=seed, embellished=quickstart.EMBELLISHED)
        if not (root / "model" / "model.safetensors").exists():
            scenes.write_model(root / "model", seed=seed, **SIZE)
        return quickstart.base_policy(root, WARM_UP)


def share(root: pathlib.Path, seed: int, base, other) -> stages.Run:
    """What all arms of a seed share: rubrics, and the responses of both policies."""
    run = stages.Run(config(root, base, seed, Arm(RUBRIC), "dpo", other), str(root / "shared"))
    run.begin()
    run.rubrics()
    run.sample(1)
    return run


def config(root, base, seed: int, arm: Arm, loss: str, other="") -> config_lib.Config:
    """An arm's run, as a user would write it."""
    made = quickstart.rdpo(root, base)
    return dataclasses.replace(
        made,
        judging=config_lib.Judging(judge={"judge": arm.judge}, store=str(root / "verdicts.sqlite")),
        pool=dataclasses.replace(made.pool, rubrics=str(root / "rubrics.jsonl")),
        pair=config_lib.Pair(recipe=arm.recipe, other=str(other)),
        objective=(MODPO_LOSSES if arm.modpo else LOSSES)[loss],
        optimizer=dataclasses.replace(made.optimizer, learning_rate=LEARNING_RATE),
        train=dataclasses.replace(
            made.train, batch_size=BATCH_SIZE, tensorboard=False, checkpoint_every=10_000
        ),
        rounds=config_lib.Rounds(count=arm.rounds, updates=UPDATES),
        evaluation=config_lib.Evaluation(judge={"judge": "oracle"}),
        seed=seed,
    )


def train(shared: stages.Run, seed: int, name: str, loss: str) -> dict:
    """One arm with one loss, from the shared responses to the evaluation."""
    root, arm = pathlib.Path(shared.workdir).parent, ARMS[name]
    workdir = root / f"{name}-{loss}"
    other = shared.config.pair.other if arm.other else ""
    base = shared.config.model.checkpoint
    run = stages.Run(config(root, base, seed, arm, loss, other), str(workdir))
    folders = ("round_1", "round_1/other") if arm.other else ("round_1",)
    for folder in folders:
        if not (workdir / folder / "samples.json").exists():
            (workdir / folder).mkdir(parents=True, exist_ok=True)
            for file in ("samples.jsonl", "samples.json"):
                shutil.copy(pathlib.Path(shared.workdir) / folder / file, workdir / folder)
    run.begin()
    rows, started = 0, time.monotonic()
    for number in range(1, arm.rounds + 1):
        run.sample(number)
        run.judge(number)
        rows += run.pair(number)["rows"]
        run.train(number)
    found = measured(seed, name, loss, run.eval(arm.rounds), rows)
    return found | {"seconds": round(time.monotonic() - started, 1)}


def measured(seed: int, arm: str, loss: str, evaluation: dict, rows: int) -> dict:
    means = {name: m["mean"] for name, m in evaluation["measures"].items() if m["n"]}
    return {"seed": seed, "arm": arm, "loss": loss, "rows": rows, "measures": means}


def close_pairs(shared: stages.Run, seed: int) -> list[dict]:
    """How often a judge with and without a rubric orders two responses as the truth does.

    Pairs of an instruction's responses whose true rewards differ, by how much they differ; both
    judges err in the same share of their marks.
    """
    folder = pathlib.Path(shared.workdir)
    pool = pool_lib.load(shared.config.pool.rubrics)
    asked = {i.id: i for i in instructions.read(shared.config.pool.path)}
    samples = sample_stage.read_samples(str(folder / "round_1" / "samples.jsonl"))
    found = []
    for noise in (0.0, 0.1, 0.2, 0.4):
        with_rubric = oracle.oracle(noise=noise, seed=seed)
        without = oracle.oracle_holistic(noise=noise, seed=seed)
        found += summary.agreement(
            seed,
            noise,
            truth=oracle.oracle(),
            judged={"rubric": with_rubric, "holistic": without},
            groups=(
                (asked[i].instance(), row, pool.of(asked[i].key)) for i, row in samples.items()
            ),
            score=score,
        )
    return found


def score(judge: judges.Judge, instance, rubric, texts: list[str]) -> list[float]:
    """The judge's weighted mean for each text."""
    own = judge.rubric(rubric)
    requests = [judges.Request(str(k), instance, text, own) for k, text in enumerate(texts)]
    marks = {r.id: v.scores for r, v in judge.score(requests, lambda request: {})}
    weights = {c.id: c.weight for c in own.criteria}
    total = sum(weights.values())
    return [sum(weights[c] * s for c, s in marks[r.id].items()) / total for r in requests]


if __name__ == "__main__":
    main()
