"""Tiny runs of the whole pipeline, in this process or in others."""

import dataclasses
import functools
import json
import pathlib
import signal
import subprocess
import sys
import time

from rubric_jax import config as config_lib
from rubric_jax.data import scenes
from tests.train import runs

# argv: config as JSON, work directory.
RUN = """
import json, sys
import jax
from rubric_jax import config, stages
jax.config.update("jax_numpy_rank_promotion", "raise")
stages.Run(config.build(json.loads(sys.argv[1])), sys.argv[2]).all()
"""


@functools.cache
def pool() -> pathlib.Path:
    """A directory with instructions.jsonl (8 of them) and heldout_instructions.jsonl (4)."""
    directory = runs.root() / "pool"
    scenes.write(directory, demos=0, pairs=8, heldout=4)
    return directory


def config(**groups) -> config_lib.Config:
    """Two rounds on 8 instructions. A random model says nothing worth choosing, so the pairs set
    the reference against its worst response."""
    data = pool()
    made = dataclasses.replace(
        runs.config(data={"path": "", "cache": ""}, mesh={"data": -1}),
        objective={"dpo": runs.PAIR},
        train=config_lib.Train(steps=2, batch_size=8, tensorboard=False, checkpoint_every=1),
        pool=config_lib.Pool(
            path=str(data / "instructions.jsonl"),
            eval_path=str(data / "heldout_instructions.jsonl"),
            writer={"writer": "oracle"},
        ),
        sample=config_lib.Sample(count=3, temperature=1.0, top_k=0, tokens=6, batch_size=8),
        judging=config_lib.Judging(judge={"judge": "oracle"}),
        pair=config_lib.Pair(recipe={"recipe": "reference_pairs", "finished": False}),
        rounds=config_lib.Rounds(count=2),
        evaluation=config_lib.Evaluation(bootstrap=50),
    )
    for name, values in groups.items():
        value = values
        if dataclasses.is_dataclass(getattr(made, name)):
            value = dataclasses.replace(getattr(made, name), **values)
        made = dataclasses.replace(made, **{name: value})
    return made


def start(job: config_lib.Config, workdir, log=None) -> subprocess.Popen:
    """The run in a process of its own, which talks to WORKDIR.log (or `log`)."""
    arguments = [json.dumps(config_lib.to_dict(job)), str(workdir)]
    # To a file: a pipe that nobody reads would fill up and stop the run.
    with open(log or f"{workdir}.log", "wb") as out:
        return subprocess.Popen(
            [sys.executable, "-c", RUN, *arguments],
            cwd=runs.ROOT,
            env=runs.environment(devices=1),
            stderr=out,
            stdout=out,
        )


def finish(job: config_lib.Config, workdir, timeout: float = 300) -> None:
    """Runs to the end, which has to be a good one."""
    process = start(job, workdir)
    process.wait(timeout)
    assert process.returncode == 0, pathlib.Path(f"{workdir}.log").read_text()[-3000:]


def kill_when(process: subprocess.Popen, condition, timeout: float = 240) -> bool:
    """Kills the process (SIGKILL) as soon as the condition holds; False if it ended before."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if process.poll() is not None:
            return False
        if condition():
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    process.kill()
    raise TimeoutError("the run neither came to the moment nor ended")


def outcome(workdir) -> dict[str, bytes]:
    """What a run came to: every stage file and evaluation, by its path."""
    root = pathlib.Path(workdir)
    names = ("samples.jsonl", "verdicts.jsonl", "pairs.jsonl", "eval.json", "rubrics.jsonl")
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*.json*"))
        if path.name in names
    }
