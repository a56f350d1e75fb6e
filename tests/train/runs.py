"""Whole runs on a tiny LLaVA and a few scenes, in this process or in others."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from rubric_jax import checkpoint, paths
from rubric_jax import config as config_lib
from rubric_jax.data import scenes

AXES = scenes.AXES
WEIGHTS = dict(zip(AXES, (0.4, 0.3, 0.2, 0.1), strict=True))
PAIR = {"win": "chosen", "lose": "rejected", "beta": 0.1}
MODPO = {"modpo": {**PAIR, "weights": WEIGHTS}, "bco": {"weight": 0.2, **PAIR}}
ROOT = pathlib.Path(__file__).parents[2]

# A run in a process of its own. argv: fields of the config as JSON, the work directory, and
# perhaps a signal and where it strikes: at the n-th batch of references, when step n is under way,
# or as soon as files of checkpoint n appear.
TRAIN = """
import json, os, pathlib, signal, sys, threading
import jax
from rubric_jax import config, stages
from rubric_jax.data import references
from rubric_jax.train import log

def strike():
    os.kill(os.getpid(), getattr(signal, sys.argv[3]))

def before(owner, name, condition):
    original = getattr(owner, name)
    def patched(self, *args):
        if condition(*args):
            strike()
        return original(self, *args)
    setattr(owner, name, patched)

def watch(number):
    folder = pathlib.Path(sys.argv[2], "checkpoints")
    while not any(path.name.startswith(str(number)) for path in folder.glob("*")):
        pass
    strike()

if len(sys.argv) > 3:
    where, number = sys.argv[4], int(sys.argv[5])
    calls = iter(range(1, 1000))
    if where == "references":
        before(references.References, "put", lambda items: next(calls) == number)
    elif where == "step":
        before(log.Log, "add", lambda step, *_: step == number)
    elif where == "checkpoint":
        threading.Thread(target=watch, args=(number,), daemon=True).start()
jax.config.update("jax_numpy_rank_promotion", "raise")
outcome = stages.train(config.build(json.loads(sys.argv[1])), sys.argv[2])
sys.exit(0 if outcome.finished else 143)
"""


@functools.cache
def root() -> pathlib.Path:
    """data/ and model/, made once per session and gone with it."""
    holder = tempfile.TemporaryDirectory(prefix="rubric_jax-tests-")
    _HOLDERS.append(holder)
    directory = pathlib.Path(holder.name)
    scenes.write(directory / "data", demos=8, pairs=24, heldout=8)
    scenes.write_model(directory / "model", width=16, depth=1, vision_width=16, vision_depth=2)
    return directory


_HOLDERS: list[tempfile.TemporaryDirectory] = []


def config(**groups) -> config_lib.Config:
    """8 steps of MODPO on 24 pairs on one device; keyword groups change fields."""
    made = config_lib.Config(
        model=config_lib.Model(checkpoint=str(root() / "model"), remat="none"),
        data=config_lib.Data(path=str(root() / "data" / "train.jsonl"), axes=AXES, buckets=1),
        objective=MODPO,
        optimizer=config_lib.Optimizer(learning_rate=1e-2),
        train=config_lib.Train(
            steps=8, batch_size=8, log_every=2, checkpoint_every=3, tensorboard=False
        ),
        mesh=config_lib.Mesh(data=1),
    )
    for name, values in groups.items():
        value = values
        if dataclasses.is_dataclass(getattr(made, name)):
            value = dataclasses.replace(getattr(made, name), **values)
        made = dataclasses.replace(made, **{name: value})
    return made


def environment(devices: int) -> dict[str, str]:
    """Of a process that computes on so many virtual devices."""
    # Unoptimised code compiles in half of the time, and is kept for the next process.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(root() / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    return {**os.environ, **cache, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


def start(config, workdir, *strike, devices=1):
    """A process that trains, perhaps struck by a signal; see TRAIN."""
    arguments = [json.dumps(config_lib.to_dict(config)), str(workdir), *map(str, strike)]
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, *arguments],
        cwd=ROOT,
        env=environment(devices),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process, *, code=0, timeout=300) -> str:
    """What the process said on standard error, once it has ended with this code."""
    _, errors = process.communicate(timeout=timeout)
    assert process.returncode == code, errors
    return errors


def parameters(workdir) -> dict[str, np.ndarray]:
    return paths.flatten(checkpoint.params(str(workdir)))


def metrics(workdir) -> list[dict]:
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def timeless(workdir) -> list[dict]:
    """The metrics that do not depend on the clock."""
    speed = {"pairs_per_second", "tokens_per_second"}
    return [
        {name: value for name, value in line.items() if name not in speed}
        for line in metrics(workdir)
    ]


def assert_same_bits(a, b):
    a, b = parameters(a), parameters(b)
    assert a.keys() == b.keys()
    different = [name for name in a if a[name].tobytes() != b[name].tobytes()]
    assert not different
