"""The main job on the embedded default: a toy LLaVA learns to look, then learns preferences.

  scenes -> random toy model -> warm-up on demonstrations -> MODPO on pairs with reward vectors
         -> held-out preference accuracy (of implicit rewards, against the warmed-up model), and
            the reward per axis of its own responses

Everything lies below one work directory in the formats of everybody's data, and a second start goes
on where the first one ended.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Mapping

import jax
import numpy as np
import rich.console
import rich.table
import tqdm

from rubric_jax import config as config_lib
from rubric_jax import sampling, sharding, stages
from rubric_jax.data import loading, scenes
from rubric_jax.train import passes
from rubric_jax.train import setup as setup_lib

DEMONSTRATIONS, PAIRS, HELD_OUT = 4000, 3000, 240
QUALITY = 0.9  # share of pairs whose chosen response is flawless
# Of the vector that responses are judged by. The pairs are ordered by one axis each; the others
# enter the loss as margins.
WEIGHTS = {"correctness": 0.4, "grounding": 0.3, "completeness": 0.2, "format": 0.1}
RESPONSE_TOKENS = 40


def run(workdir: str) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """Runs the whole job and prints what moved. Returns {measure: (before, after)} per instance."""
    started = time.monotonic()
    root = pathlib.Path(workdir)
    write_scenes(root)
    warm = _train_and_export(warm_up(root, root / "model"), root / "warm-up")
    tuned = _train_and_export(preference(root, warm), root / "preference")
    sums, before = measure(root, warm)
    new_sums, after = measure(root, tuned)
    margin = np.subtract(*(new_sums - sums).T)  # implicit reward of chosen - rejected, over beta
    accuracy = "preference accuracy"
    before = {accuracy: np.full(len(margin), 0.5), **before}  # no margin yet: a toss-up
    after = {accuracy: (margin > 0) + 0.5 * (margin == 0), **after}
    _report(before, after, time.monotonic() - started, tuned)
    return {name: (before[name], after[name]) for name in before}


def write_scenes(root, *, pairs: int = PAIRS, seed: int = 0) -> None:
    """Writes data/ (TRL's layout) and model/ (a random toy LLaVA), unless they are there."""
    root = pathlib.Path(root)
    if not (root / "data" / "facts.jsonl").exists():
        sizes = {"demos": DEMONSTRATIONS, "pairs": pairs, "heldout": HELD_OUT}
        scenes.write(root / "data", **sizes, seed=seed, quality=QUALITY)
    if not (root / "model" / "model.safetensors").exists():
        scenes.write_model(root / "model", seed=seed)


def warm_up(root: pathlib.Path, model: pathlib.Path) -> config_lib.Config:
    """Supervised training on reference responses."""
    config = _base(root, model, "demos.jsonl")
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, branches=("chosen",)),
        objective={"nll": {"on": "chosen"}},
        optimizer=config_lib.Optimizer(name="muon", learning_rate=2e-3, warmup=0.1),
        train=dataclasses.replace(config.train, steps=200, reference="none"),
    )


def preference(root: pathlib.Path, model: pathlib.Path) -> config_lib.Config:
    """MODPO over the axes of the scenes, with the likelihood of the chosen response."""
    config = _base(root, model, "train.jsonl")
    pair = {"win": "chosen", "lose": "rejected", "beta": 0.1}
    return dataclasses.replace(
        config,
        objective={
            "modpo": {"weight": 0.1, **pair, "weights": WEIGHTS},
            "nll": {"weight": 1.0, "on": "chosen"},
        },
        optimizer=config_lib.Optimizer(name="muon", learning_rate=1.5e-3, warmup=0.1),
        train=dataclasses.replace(config.train, epochs=3.0),
    )


def measure(root: pathlib.Path, model: pathlib.Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What a checkpoint does on held-out instances (H of them).

    Returns log-probabilities [H, 2] of the chosen and the rejected response, in nats, and the
    reward [H] per axis of its own most likely response, judged against the ground truth.
    """
    config = _base(root, model, "heldout.jsonl")
    setup = setup_lib.build(config)
    data = setup_lib.source(setup, config.data.path, "", str(root / "cache"))
    with jax.set_mesh(setup.mesh):
        params = setup_lib.load(setup)
        sums = passes.score(setup, params, data)["sums"]
        texts = respond(setup, params, data)
    facts = {}
    with open(root / "data" / "facts.jsonl", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            facts[record["id"]] = record
    scores = [
        scenes.score(scenes.from_facts(facts[name]), text)
        for name, text in zip(data.index["id"], texts, strict=True)
    ]
    return sums, {f"reward: {axis}": np.array([s[axis] for s in scores]) for axis in scenes.AXES}


def respond(setup: setup_lib.Setup, params, data: loading.Source) -> list[str]:
    """The model's most likely response to every prompt, in the order of the data."""
    plan = setup_lib.plan(setup, data, shuffle=False)
    texts = [""] * len(data)
    batches = setup_lib.batches(setup, data, plan, stop=plan.steps_per_epoch)
    for batch, rows in tqdm.tqdm(batches, total=plan.steps_per_epoch, desc="respond"):
        samples = sampling.sample(
            setup.vlm,
            params,
            sharding.put_batch(batch, setup.mesh),
            jax.random.key(0),
            count=1,
            length=RESPONSE_TOKENS,
            temperature=0.0,
            stop=setup.processor.eos_ids,
        )
        for row, ids, mask in zip(
            rows, *sharding.to_host((samples.ids, samples.mask)), strict=True
        ):
            if row >= 0:
                texts[row] = setup.processor.decode(ids[0][mask[0]])
    return texts


def _base(root: pathlib.Path, model: pathlib.Path, file: str) -> config_lib.Config:
    return config_lib.Config(
        model=config_lib.Model(checkpoint=str(model), remat="none"),
        data=config_lib.Data(
            path=str(root / "data" / file),
            cache=str(root / "cache"),
            axes=scenes.AXES,
            buckets=1,  # a compilation costs more here than the padding of a whole epoch
        ),
        train=config_lib.Train(batch_size=32, log_every=25),
        mesh=config_lib.Mesh(),
    )


def _train_and_export(config: config_lib.Config, workdir: pathlib.Path) -> pathlib.Path:
    outcome = stages.train(config, str(workdir))
    if not outcome.finished:
        raise SystemExit(143)
    directory = workdir / "huggingface"
    if not (directory / "model.safetensors").exists():
        stages.export(str(workdir), str(directory))
    return directory


def _report(before, after, seconds: float, directory: os.PathLike) -> None:
    count = len(next(iter(before.values())))
    table = rich.table.Table(title=f"{count} held-out instances, mean ± 95 %")
    for heading in ("", "after warm-up", "after MODPO", "change"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in before:
        change = after[name] - before[name]
        table.add_row(name, _mean(before[name]), _mean(after[name]), _mean(change, sign="+"))
    console = rich.console.Console()
    console.print(table)
    console.print(
        f"{seconds:.0f} s; the trained model, for transformers: {directory}", soft_wrap=True
    )


def _mean(values: np.ndarray, sign: str = "") -> str:
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():{sign}.3f} ± {half:.3f}"
