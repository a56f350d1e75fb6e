import dataclasses
import json
import pathlib
import re
import shutil
import signal
import socket

import numpy as np
import pytest

from rubric_jax import checkpoint, config
from rubric_jax.train import loop
from tests.train import runs

KILLED = -signal.SIGKILL
LEFT = 143  # 128 + SIGTERM
SPEED = {"pairs_per_second", "tokens_per_second"}


def values(workdir):
    """The metrics that do not depend on the clock."""
    return [
        {name: value for name, value in line.items() if name not in SPEED}
        for line in runs.metrics(workdir)
    ]


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 8 steps on one device that nothing disturbs."""
    workdir = tmp_path_factory.mktemp("whole")
    runs.finish(runs.start(runs.config(train={"log_every": 1}), workdir))
    return workdir


@pytest.mark.slow
def test_a_run_killed_at_many_points_ends_with_the_bits_of_one_that_was_not(whole, tmp_path):
    made = runs.config(train={"log_every": 1})
    strikes = [
        ("SIGKILL", "references", 2),
        ("SIGKILL", "step", int(np.random.default_rng().integers(4, 6))),
        ("SIGKILL", "checkpoint", 6),
        ("SIGTERM", "step", 7),
    ]
    for strike in strikes:
        expected = KILLED if strike[0] == "SIGKILL" else LEFT
        said = runs.finish(runs.start(made, tmp_path, *strike), code=expected)
    assert "SIGTERM: saved step 7; the same command goes on from there." in said
    assert "Resuming at step 7." in runs.finish(runs.start(made, tmp_path))
    runs.assert_same_bits(tmp_path, whole)
    assert values(tmp_path) == values(whole)


@pytest.mark.slow
def test_every_logged_step_stands_in_the_metrics_once(whole):
    lines = runs.metrics(whole)
    assert [line["step"] for line in lines] == list(range(1, 9))
    for line in lines:
        assert {"loss", "loss/modpo", "rewards/chosen", "rewards/margins", "grad_norm"} <= set(line)
        assert {"reward_gap/grounding", "learning_rate", "logps/chosen"} <= set(line)
        assert all(np.isfinite(value) for value in line.values())
    assert not SPEED & set(lines[0])  # it compiled
    assert all(set(line) >= SPEED for line in lines[1:])
    np.testing.assert_allclose(lines[0]["rewards/margins"], 0.0, atol=1e-5)  # policy = reference


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path):
    steps = {"steps": 3, "checkpoint_every": 10, "log_every": 1}
    # A large eps: Adam would make steps of full size out of rounding where a gradient is 0.
    common = {"train": steps, "optimizer": {"learning_rate": 0.3, "knobs": {"eps": 1.0}}}
    one = runs.config(**common, mesh={"data": 2, "fsdp": 4})
    first = runs.start(one, tmp_path / "one", devices=8)

    def both(*strikes):
        mesh = {"data": 2, "fsdp": 4, "distributed": True, "processes": 2}
        mesh["coordinator"] = f"localhost:{free_port()}"
        made = [runs.config(**common, mesh={**mesh, "process": i}) for i in (0, 1)]
        return [
            runs.start(each, tmp_path / "two", *strike, devices=4)
            for each, strike in zip(made, strikes, strict=True)
        ]

    runs.finish(first)
    # The signal reaches one of them; they leave together, and go on together.
    said = [runs.finish(process, code=LEFT) for process in both((), ("SIGTERM", "step", 1))]
    saved = re.search(r"saved step (\d)", said[0])
    assert saved, said[0]
    said = [runs.finish(process) for process in both((), ())]
    assert f"Resuming at step {saved[1]}." in said[0]
    assert "Resuming" not in said[1]
    a, b = runs.parameters(tmp_path / "one"), runs.parameters(tmp_path / "two")
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(b[name], a[name], rtol=1e-4, atol=1e-5, err_msg=name)
    for x, y in zip(values(tmp_path / "one"), values(tmp_path / "two"), strict=True):
        assert x.keys() == y.keys()
        if x["step"] == 1:  # policy = reference: rounding decides who is ahead
            del x["rewards/accuracies"]
        for name in x:
            np.testing.assert_allclose(y[name], x[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(tmp_path):
    # After a step of 1e15 the next forward pass overflows.
    made = runs.config(
        mesh={"data": -1},
        train={"steps": 4, "checkpoint_every": 1, "reference": "step"},
        optimizer={"learning_rate": 1e15, "clip": 0.0, "schedule": "constant", "warmup": 0.0},
    )
    with pytest.raises(FloatingPointError, match=r"Step \d: loss .*Nothing was saved after"):
        loop.train(made, str(tmp_path))
    for name, leaf in runs.parameters(tmp_path).items():
        assert np.isfinite(leaf).all(), name


@pytest.mark.slow
def test_a_run_does_not_resume_on_other_data_behind_the_same_path(tmp_path):
    made = runs.config(mesh={"data": -1})
    data = tmp_path / "prefs.jsonl"
    lines = pathlib.Path(made.data.path).read_text().splitlines()
    root = pathlib.Path(made.data.path).parent
    (tmp_path / "images").symlink_to(root / "images")
    data.write_text("\n".join(lines))
    fields = dataclasses.replace(made.data, path=str(data), eval_path="")
    short = dataclasses.replace(made, data=fields)
    loop.train(short, str(tmp_path / "run"))
    data.write_text("\n".join(lines[:-1]))
    with pytest.raises(ValueError, match=r"trained on other inputs.*data:"):
        loop.train(short, str(tmp_path / "run"))


def claimed(workdir, made):
    checkpoint.claim(str(workdir), config.to_dict(made))


def test_a_work_directory_with_checkpoints_of_another_config_is_refused(tmp_path):
    claimed(tmp_path, runs.config())
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"(?s)another config:\s+optimizer\.learning_rate: 0.01 -> 0.5"
    ):
        loop.train(runs.config(optimizer={"learning_rate": 0.5}, mesh={"data": -1}), str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["optimizer"]["learning_rate"] == 0.01


def test_a_work_directory_without_checkpoints_may_take_another_config(tmp_path):
    # Else a slip in the data's path would cost a work directory.
    claimed(tmp_path, runs.config(data={"path": "nowhere.jsonl"}))
    (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"No data at 'elsewhere\.jsonl'"):
        loop.train(runs.config(data={"path": "elsewhere.jsonl"}, mesh={"data": -1}), str(tmp_path))


def edited(tmp_path, edit):
    """A copy of the training data, row by row through `edit`."""
    source = runs.root() / "data" / "train.jsonl"
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    for number, row in enumerate(rows, 1):
        edit(number, row)
        row["images"] = [str(source.parent / image) for image in row["images"]]
    path = tmp_path / "edited.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(path)


def refused(tmp_path, match, **groups):
    with pytest.raises(ValueError, match=match):
        loop.train(runs.config(mesh={"data": -1}, **groups), str(tmp_path / "run"))
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_modpo_refuses_rows_without_rewards(tmp_path):
    path = edited(tmp_path, lambda number, row: number == 5 and row.pop("rejected_rewards"))
    refused(
        tmp_path, "1 of 24 rows of .*edited.jsonl lack a reward on some axis", data={"path": path}
    )


def test_modpo_refuses_rows_without_the_axis_that_ordered_them(tmp_path):
    path = edited(tmp_path, lambda number, row: number in (3, 9) and row.pop("axis"))
    refused(tmp_path, r"edited.jsonl:3: axis: missing in 2 of 24 rows", data={"path": path})


def test_modpo_refuses_an_ordering_axis_without_weight(tmp_path):
    def order(number, row):
        row["axis"] = "format" if number == 7 else "grounding"

    path = edited(tmp_path, order)
    objective = {"modpo": {**runs.PAIR, "weights": {**runs.WEIGHTS, "format": 0.0}}}
    match = r"edited.jsonl: axis: Row 7 is ordered by axis 3, whose weight is 0.*3 format"
    refused(tmp_path, match, data={"path": path}, objective=objective)


def test_held_out_rows_are_held_to_the_same(tmp_path):
    path = edited(tmp_path, lambda number, row: number == 5 and row.pop("axis"))
    refused(tmp_path, r"edited.jsonl:5: axis: missing in 1 of 24", data={"eval_path": path})


def test_a_reference_that_the_objective_reads_cannot_be_none(tmp_path):
    refused(
        tmp_path,
        "reads a reference, but config.train.reference is 'none'",
        train={"reference": "none"},
    )


def test_the_best_checkpoints_need_held_out_data(tmp_path):
    refused(tmp_path, "keep_best needs held-out data", train={"keep_best": 1})


def test_a_reference_of_another_architecture_is_refused(tmp_path):
    made = runs.config(mesh={"data": -1})
    other = tmp_path / "other"
    shutil.copytree(made.model.checkpoint, other)
    values = json.loads((other / "config.json").read_text())
    values["text_config"]["rms_norm_eps"] = 1e-3
    (other / "config.json").write_text(json.dumps(values))
    refused(tmp_path, "another architecture", model={"reference": str(other)})


def test_a_batch_that_does_not_split_is_refused(tmp_path):
    refused(tmp_path, "A batch of 12 rows does not split into 8", train={"batch_size": 12})


def test_an_unwritable_work_directory_is_named(tmp_path):
    (tmp_path / "run").write_text("a file where a directory should be")
    with pytest.raises(ValueError, match=r"Cannot write to .*run: "):
        loop.train(runs.config(mesh={"data": -1}), str(tmp_path / "run"))
