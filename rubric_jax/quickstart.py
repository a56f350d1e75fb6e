"""The main job on the embedded default: a toy LLaVA learns to look, then learns by rDPO.

  scenes -> random toy model -> warm-up on demonstrations: the base
         -> one round: rubrics, on-policy samples, verdicts of the oracle, pairs, training
         -> evaluation of both on held-out pictures, and a page to look at

Everything lies below one work directory in the formats of everybody's data, and a second start goes
on where the first one ended.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping
from typing import Any

import rich.console
import rich.table

from rubric_jax import config as config_lib
from rubric_jax import stages
from rubric_jax.data import scenes
from rubric_jax.stages import files

DEMONSTRATIONS, INSTRUCTIONS, HELD_OUT = 4000, 800, 400
EMBELLISHED = 0.7  # share of demonstrations that see a thing too many: the habit to unlearn


def run(workdir: str) -> dict[str, Any]:
    """Runs the whole job, prints what moved and where the page is; returns both evaluations."""
    started = time.monotonic()
    root = pathlib.Path(workdir)
    write_scenes(root)
    base = base_policy(root)
    job = stages.Run(rdpo(root, base), str(root / "rdpo"))
    page = job.all()
    before, after = job.eval(0), job.eval(1)
    console = rich.console.Console()
    console.print(_table(before, after))
    console.print(f"{time.monotonic() - started:.0f} s. The page: {page}", soft_wrap=True)
    console.print(f"The trained model, for transformers: {job.path(1, 'policy')}", soft_wrap=True)
    return {"base": before, "rdpo": after}


def write_scenes(root, *, pairs: int = INSTRUCTIONS, seed: int = 0) -> None:
    """Writes data/ (instructions, and pairs in TRL's layout) and model/ (a random toy LLaVA),
    unless they are there."""
    root = pathlib.Path(root)
    settings = {"demos": DEMONSTRATIONS, "pairs": pairs, "heldout": HELD_OUT, "seed": seed}
    settings |= {"embellished": EMBELLISHED}
    file = files.File(str(root / "data" / "facts.jsonl"), "scenes", settings, {})
    if not files.begin(file):
        scenes.write(root / "data", **settings)
        files.finish(file, {})
    if not (root / "model" / "model.safetensors").exists():
        scenes.write_model(root / "model", seed=seed)


def base_policy(root: pathlib.Path, steps: int = 400) -> pathlib.Path:
    """Supervised training on reference responses; returns the Hugging Face directory."""
    workdir = root / "warm-up"
    config = config_lib.Config(
        model=config_lib.Model(checkpoint=str(root / "model"), remat="none"),
        data=_data(root, path=str(root / "data" / "demos.jsonl"), branches=("chosen",)),
        objective={"nll": {"on": "chosen"}},
        optimizer=config_lib.Optimizer(name="muon", learning_rate=2e-3, warmup=0.1),
        train=config_lib.Train(batch_size=32, log_every=25, steps=steps, reference="none"),
    )
    directory = workdir / "huggingface"
    if not (directory / "model.safetensors").exists():
        if not stages.train(config, str(workdir)).finished:
            raise stages.Interrupted(str(workdir))
        stages.export(str(workdir), str(directory))
    return directory


def rdpo(root: pathlib.Path, base: pathlib.Path) -> config_lib.Config:
    """One round of rDPO with a MODPO loss over the axes of the scenes."""
    data = root / "data"
    pair = {"win": "chosen", "lose": "rejected", "beta": 0.1}
    return config_lib.Config(
        model=config_lib.Model(checkpoint=str(base), remat="none"),
        data=_data(root),
        pool=config_lib.Pool(
            path=str(data / "instructions.jsonl"),
            eval_path=str(data / "heldout_instructions.jsonl"),
            writer={"writer": "oracle"},
        ),
        sample=config_lib.Sample(count=8, temperature=1.0, top_k=0, tokens=48, batch_size=64),
        judging=config_lib.Judging(judge={"judge": "oracle"}),
        pair=config_lib.Pair(recipe={"recipe": "rubric", "margin": 0.1, "pairs": 2}),
        objective={
            "modpo": {"weight": 0.2, **pair, "weights": WEIGHTS},
            "nll": {"weight": 1.0, "on": "chosen"},
        },
        optimizer=config_lib.Optimizer(name="muon", learning_rate=5e-4, warmup=0.1),
        train=config_lib.Train(batch_size=32, log_every=5, epochs=1.0),
    )


# Of what the page and eval.json have.
_SHOWN = (
    "reward",
    *(f"reward/{axis}" for axis in scenes.AXES),
    "all essentials",
    "response tokens",
    "finished",
)

# Of the reward vector; every pair is ordered by one axis, the others enter the loss as margins.
WEIGHTS = {"correctness": 0.4, "grounding": 0.3, "completeness": 0.2, "format": 0.1}


def _data(root: pathlib.Path, **fields) -> config_lib.Data:
    # One bucket: a compilation costs more here than the padding of a whole epoch.
    return config_lib.Data(cache=str(root / "cache"), axes=scenes.AXES, buckets=1, **fields)


def _table(before: Mapping[str, Any], after: Mapping[str, Any]) -> rich.table.Table:
    table = rich.table.Table(
        title=f"{before['instances']} held-out instances, mean and 95 % interval (bootstrap)"
    )
    for heading in ("", "base", "rDPO", "intervals"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in _SHOWN:
        old, new = before["measures"][name], after["measures"][name]
        apart = old["high"] < new["low"] or new["high"] < old["low"]
        table.add_row(name, _cell(old), _cell(new), "apart" if apart else "overlap")
    return table


def _cell(measure: Mapping[str, float]) -> str:
    return f"{measure['mean']:.3f} ± {(measure['high'] - measure['low']) / 2:.3f}"
