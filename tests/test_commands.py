"""The command line as a user meets it: exit codes and messages."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from rubric_jax import checkpoint, config
from tests.train import runs

# Runs each command of a JSON list in a fork of one process, for importing takes the longest.
# Prints [exit code, standard output, standard error] of each.
RUN = """
import json, os, pathlib, sys, tempfile, traceback
from absl import app
from rubric_jax import __main__ as main

def child(arguments, folder):
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = ["python -m rubric_jax", *arguments]
    code = 0
    try:
        app.run(main.main, flags_parser=main.parse)
    except SystemExit as leaving:
        code = leaving.code
        if isinstance(code, str):  # what the interpreter does with a message
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)

results = []
for arguments in json.loads(sys.argv[1]):
    folder = pathlib.Path(tempfile.mkdtemp(dir=sys.argv[2]))
    number = os.fork()
    if not number:
        child(arguments, folder)
    status = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    results.append([status, (folder / "out").read_text(), (folder / "err").read_text()])
print(json.dumps(results))
"""


def run_all(commands):
    flags = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
    with tempfile.TemporaryDirectory() as folder:
        found = subprocess.run(
            [sys.executable, "-c", RUN, json.dumps(commands), folder],
            cwd=runs.ROOT,
            env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(runs.ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=600,
        )
    return json.loads(found.stdout.splitlines()[-1])


def flags_of(**fields):
    """--config flags for the tiny model and data; keywords use __ for dots."""
    values = {
        "model.checkpoint": runs.root() / "model",
        "data.path": runs.root() / "data" / "train.jsonl",
        **{name.replace("__", "."): value for name, value in fields.items()},
    }
    return ["--config=configs/llava.py", *(f"--config.{k}={v}" for k, v in values.items())]


def other_architecture(folder):
    """A checkpoint directory whose config.json describes another model."""
    shutil.copytree(runs.root() / "model", folder)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"model_type": "qwen2_vl"}))
    return folder


def pickled(folder):
    shutil.copytree(runs.root() / "model", folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return folder


def belongs_to_another(folder):
    checkpoint.claim(str(folder), config.to_dict(runs.config()))
    (folder / "checkpoints" / "4").mkdir(parents=True)
    return folder


MISTAKES = {
    "no command": ([], r"Give one command of audit, train, score, export, combine"),
    "unknown command": (["trian"], r"error: Unknown command 'trian'; .* Did you mean 'train'\?"),
    "no config": (["train", "--workdir=W"], r"error: This command needs --config=FILE"),
    "no such config": (
        ["train", "--config=configs/lava.py", "--config.data.path=x"],
        r"error: --config: .*configs/lava.py",
    ),
    "unknown flag": (["train", "--wrokdir=W"], r"Unknown command line flag 'wrokdir'.* workdir"),
    "unknown field": (
        ["train", *flags_of(data__pth="x")],
        r"error: config.data.pth: the config file has no field 'pth'. Did you mean 'path'\?",
    ),
    "wrong type": (["train", *flags_of(train__steps="ten")], r"--config.train.steps=ten"),
    "out of range": (
        ["train", *flags_of(train__batch_size=0), "--workdir=W"],
        r"error: config.train.batch_size is 0; it must be at least 1",
    ),
    "unknown choice": (
        ["train", *flags_of(model__dtype="bfloat61"), "--workdir=W"],
        r"error: config.model.dtype is 'bfloat61'; .*Did you mean 'bfloat16'\?",
    ),
    "unknown knob": (
        ["train", *flags_of(objective__dpo__bta=0.2)],
        r"error: config.objective.dpo.bta: .*Did you mean 'beta'\?",
    ),
    "unknown branch": (
        ["train", *flags_of(objective__dpo__win="chosn"), "--workdir=W"],
        r"error: config.objective.dpo.win is 'chosn'; .*Did you mean 'chosen'\?",
    ),
    "no pool": (
        ["run", "--config=configs/rdpo_llava.py", "--workdir=W"],
        r"error: config.pool.path is empty",
    ),
    "no server": (
        ["run", "--config=configs/rdpo_llava.py", "--config.pool.path=no.jsonl", "--workdir=W"],
        r"error: judge 'openai': A judge needs a model and a base_url",
    ),
    "round 0": (
        ["sample", "--config=configs/rdpo_llava.py", "--workdir=W", "--round=0"],
        r"error: --round=0 is the base, which only `eval` reads",
    ),
    "no judge": (
        ["judge", *flags_of(pool__path="x"), "--workdir=W"],
        r"error: config.judging.judge is empty",
    ),
    "no workdir": (["train", *flags_of()], r"error: This command needs --workdir\."),
    "no out": (["score", *flags_of()], r"error: This command needs --out\."),
    "no checkpoint": (
        ["train", *flags_of(model__checkpoint="/no/such/directory"), "--workdir=W"],
        r"error: config.model.checkpoint is '/no/such/directory'; no such directory",
    ),
    "another architecture": (
        ["audit", *flags_of(model__checkpoint="OTHER")],
        r"error: config.json describes 'qwen2_vl'",
    ),
    "pickled weights": (
        ["score", *flags_of(model__checkpoint="PICKLED"), "--out=O"],
        r"error: No safetensors weights in .*pickle",
    ),
    "no data": (
        ["audit", *flags_of(data__path="nowhere.jsonl")],
        r"error: No data at 'nowhere.jsonl'",
    ),
    "another config's directory": (
        ["train", *flags_of(), "--workdir=TAKEN"],
        r"error: The work directory .* belongs to another config:",
    ),
    "not a number": (
        ["export", "--workdir=W", "--out=O", "--step=last"],
        r"error: --step=last is neither a number nor 'best'",
    ),
    "not a run": (["export", "--workdir=W", "--out=O"], r"error: No config.json in .*W"),
}


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    """{name: (exit code, standard error)}"""
    folder = tmp_path_factory.mktemp("mistakes")
    makers = {"OTHER": other_architecture, "PICKLED": pickled, "TAKEN": belongs_to_another}
    for name, make in makers.items():
        make(folder / name)

    def placed(argument):
        name, _, value = argument.partition("=")
        return f"{name}={folder / value}" if value in ("W", "O", *makers) else argument

    results = run_all([list(map(placed, arguments)) for arguments, _ in MISTAKES.values()])
    assert not (folder / "W").exists()  # nothing was begun
    return {name: (code, errors) for name, (code, _, errors) in zip(MISTAKES, results)}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_a_line(mistakes, name):
    code, errors = mistakes[name]
    assert code in (1, 2)
    assert "Traceback" not in errors
    with pytest.raises(ValueError, match=MISTAKES[name][1]):
        raise ValueError(errors)


@pytest.mark.slow
def test_the_commands_of_the_manual_work_as_written(tmp_path):
    files = {name: str(tmp_path / name) for name in ("run", "logps.npz", "hf")}
    steps = flags_of(train__steps=2, train__batch_size=4)
    results = run_all(
        [
            ["audit", *steps],
            ["train", *steps, f"--workdir={files['run']}"],
            ["score", *steps, f"--out={files['logps.npz']}"],
            ["export", f"--workdir={files['run']}", f"--out={files['hf']}", "--step=2"],
            ["scenes", f"--out={tmp_path / 'made'}", "--rows=4"],
        ]
    )
    assert [code for code, _, _ in results] == [0] * 5, results
    assert "compilations of the step to expect" in results[0][1]
    assert runs.metrics(files["run"])[-1]["step"] == 2
    with np.load(files["logps.npz"]) as arrays:
        assert arrays["logps"].shape[:2] == (24, 2)
    assert (pathlib.Path(files["hf"]) / "model.safetensors").exists()
    assert len((tmp_path / "made" / "data" / "train.jsonl").read_text().splitlines()) == 4
    assert (tmp_path / "made" / "model" / "config.json").exists()


@pytest.mark.slow
def test_the_module_runs():
    found = subprocess.run(
        [sys.executable, "-m", "rubric_jax", "trian"],
        cwd=runs.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 1
    assert found.stderr.startswith("error: Unknown command 'trian'")
