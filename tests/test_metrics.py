import json
import pathlib
import sys
import types as python_types

import jax
import numpy as np
import pytest

from rubric_jax import metrics


def open_writer(workdir, **kwargs):
    fields = {"tensorboard": False, "wandb_project": "", "config": {"seed": 0}, "is_writer": True}
    return metrics.Writer(workdir, **{**fields, **kwargs})


def read(workdir):
    def no_constant(name):
        raise ValueError(f"{name} is not JSON")

    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=no_constant) for line in lines]


def test_each_step_is_one_line_that_is_on_disk_at_once(tmp_path):
    with open_writer(tmp_path / "run") as writer:
        writer.write(1, {"loss": np.float32(0.5), "accuracy": 1})
        writer.write(2, {"loss": jax.numpy.float32(0.25)})
        assert read(tmp_path / "run") == [
            {"step": 1, "loss": 0.5, "accuracy": 1.0},
            {"step": 2, "loss": 0.25},
        ]


def test_metrics_of_one_step_written_twice_share_its_line(tmp_path):
    with open_writer(tmp_path) as writer:
        writer.write(1, {"loss": 0.5})
        writer.write(2, {"loss": 0.25, "accuracy": float("nan")})
        writer.write(2, {"eval/accuracy": 0.123456789, "eval/loss": float("inf")})
        writer.write(2, {"eval/accuracy": 1.0})
    with open_writer(tmp_path, step=2) as writer:
        writer.write(2, {"eval/margin": 2.0})
        writer.write(3, {"loss": 0.1})
    assert read(tmp_path) == [
        {"step": 1, "loss": 0.5},
        {
            "step": 2,
            "loss": 0.25,
            "accuracy": None,
            "eval/accuracy": 1.0,
            "eval/loss": None,
            "nonfinite": 2,
            "eval/margin": 2.0,
        },
        {"step": 3, "loss": 0.1},
    ]


def test_values_that_are_not_finite_are_null_and_counted(tmp_path):
    with open_writer(tmp_path, tensorboard=True) as writer:
        writer.write(1, {"a": float("nan"), "b": float("-inf"), "c": 1.0})
        writer.write(2, {"a": 2.0})
    assert read(tmp_path) == [
        {"step": 1, "a": None, "b": None, "c": 1.0, "nonfinite": 2},
        {"step": 2, "a": 2.0},
    ]


def test_lines_after_the_restored_step_are_dropped(tmp_path):
    with open_writer(tmp_path) as writer:
        for step in range(1, 6):
            writer.write(step, {"loss": step})
    with open_writer(tmp_path, step=3) as writer:
        writer.write(4, {"loss": 40})
    assert [line["loss"] for line in read(tmp_path)] == [1, 2, 3, 40]
    open_writer(tmp_path, step=0).close()
    assert read(tmp_path) == []


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path):
    with open_writer(tmp_path) as writer:
        writer.write(1, {"loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    with open_writer(tmp_path) as writer:
        writer.write(2, {"loss": 2.0})
    assert [line["step"] for line in read(tmp_path)] == [1, 2]


def test_a_step_before_the_newest_is_refused(tmp_path):
    with open_writer(tmp_path) as writer:
        writer.write(3, {"loss": 1.0})
        with pytest.raises(ValueError, match="step 2 after those of step 3"):
            writer.write(2, {"loss": 1.0})


def test_a_process_that_is_not_the_writer_leaves_no_trace(tmp_path):
    options = {"tensorboard": True, "wandb_project": "p", "is_writer": False}
    with open_writer(tmp_path / "run", **options) as writer:
        writer.write(1, {"loss": 1.0})
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_the_same_numbers(tmp_path):
    with open_writer(tmp_path, tensorboard=True) as writer:
        writer.write(1, {"loss": 0.5})
    with open_writer(tmp_path, tensorboard=True, step=1) as writer:
        writer.write(2, {"loss": 0.25})
    events = list((tmp_path / "tensorboard").iterdir())
    content = b"".join(path.read_bytes() for path in events)
    assert content.count(b"loss") >= 2


def test_a_full_disk_is_named(tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = open_writer(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(ValueError, match=rf"Cannot write {tmp_path}/metrics\.jsonl: File too"):
            writer.write(1, {"loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_an_unwritable_work_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"Cannot write .*file/metrics\.jsonl"):
        open_writer(tmp_path / "file")


def test_weights_and_biases_asked_for_but_not_installed_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # import raises ImportError
    with pytest.raises(ValueError, match=r"config\.train\.wandb_project is 'p'.*not installed"):
        open_writer(tmp_path, wandb_project="p")


def test_weights_and_biases_continues_the_run_of_a_work_directory(tmp_path, monkeypatch):
    calls = []
    run = python_types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
    )
    wandb = python_types.ModuleType("wandb")
    wandb.init = lambda **fields: calls.append(fields) or run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for step in (1, 2):
        with open_writer(tmp_path, wandb_project="p") as writer:
            writer.write(step, {"loss": step})
    first, second = calls[0], calls[3]
    assert first["id"] == second["id"]
    assert (first["project"], first["resume"], first["config"]) == ("p", "allow", {"seed": 0})
    assert calls[1:3] == [(1, {"loss": 1.0}), "end"]


def device(kind):
    return python_types.SimpleNamespace(device_kind=kind)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),  # how jax calls a v5p
        ("TPU v6 lite", 918e12),
        ("TPU v6e", 918e12),
        ("TPU7x", 1153.5e12),
        ("cpu", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("TPU v4 lite", None),
    ],
)
def test_peaks_are_known_by_the_names_that_jax_gives(kind, peak):
    assert metrics.peak_flops(device(kind)) == peak


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_throughput_by_hand():
    """Two H200 for 4 s: 16 pairs, 8000 tokens and 989e12 * 2 flops are a quarter of the peak."""
    clock = Clock()
    speed = metrics.Throughput([device("NVIDIA H200")] * 2, clock)
    for _ in range(2):
        speed.add(pairs=8, tokens=4000, flops=989e12)
        clock.now += 2
    expected = {"pairs_per_second": 4.0, "tokens_per_second": 2000.0, "mfu": 0.25}
    assert speed.read() == expected
    # What was read does not count again, nor what lies before `restart`.
    clock.now += 1
    assert speed.read() == {"pairs_per_second": 0.0, "tokens_per_second": 0.0}
    clock.now += 1000
    speed.restart()
    speed.add(pairs=8, tokens=4000, flops=989e12)
    clock.now += 2
    assert speed.read() == expected


def test_mfu_is_left_out_where_peak_or_flops_are_unknown():
    for devices, flops in (([device("cpu")], 1e9), ([device("NVIDIA H200")], 0.0)):
        clock = Clock()
        speed = metrics.Throughput(devices, clock)
        speed.add(pairs=1, tokens=1, flops=flops)
        clock.now += 1
        assert sorted(speed.read()) == ["pairs_per_second", "tokens_per_second"]
