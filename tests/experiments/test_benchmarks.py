"""The benchmarks' own code, on toy sizes: what they count, and what a command writes."""

import importlib
import importlib.util
import json
import os
import pathlib
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "benchmarks"
TOY = {
    "width": 64, "depth": 2, "heads": 1, "mlp": 96, "vocab": 64, "image": 28, "vision_width": 64,
    "vision_depth": 2, "dtype": "float32", "rows": 8, "prompt": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def benchmarks():
    """Modules by name, from the folder in which they run."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))


HLO = """
%body (x: (s32[], f32[4,2])) -> (s32[], f32[4,2]) {
  %gathered = f32[8,2]{1,0} all-gather(%part), channel_id=1, replica_groups=[4,2]<=[8]
}

%cond (x: (s32[], f32[4,2])) -> pred[] {
}

ENTRY %main (a: f32[4,2]) -> f32[4,2] {
  %turned = (s32[], f32[4,2]) while(%start), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %reduced = (bf16[10]{0}, f32[]) all-reduce(%a, %b), replica_groups=[2,4]<=[4,2]T(1,0)
  %alone = f32[4] all-reduce(%c), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}
}
"""


def test_bytes_that_a_program_sends_worked_by_hand(benchmarks):
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), devices=jax.devices()[:8])
    sent = benchmarks("collectives").sent(HLO, mesh)
    # Pairs (0, 1), (2, 3), ... are neighbours along tensor: 64 bytes, of which half, thrice.
    assert sent["tensor"] == {"all-gather": 3 * 64 * 0.5}
    # Groups (0, 2, 4, 6), (1, 3, 5, 7) lie along data: 24 bytes, twice three quarters of them.
    assert sent["data"] == {"all-reduce": 24 * 1.5}
    assert len(sent) == 2  # groups of one device send nothing


TPU_HLO = """
%cond (x: (s32[], f32[2,4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(5)
  ROOT %less = pred[]{:T(512)} compare(%counter, %bound), direction=LT
}

%all-reduce-scatter.1 (x: f32[8,4]) -> f32[2,4] {
  %all-reduce.2 = f32[8,4]{1,0} all-reduce(%x), \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, to_apply=%add
}

%body (x: (s32[], f32[2,4])) -> (s32[], f32[2,4]) {
  %fusion.1 = f32[2,4]{1,0} fusion(%part), kind=kCustom, calls=%all-reduce-scatter.1
}

ENTRY %main (a: f32[2,4]) -> f32[2,4] {
  %turned = (s32[], f32[2,4]) while(%start), condition=%cond, body=%body
}
"""


def test_bytes_that_a_program_for_tpus_sends_worked_by_hand(benchmarks):
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), devices=jax.devices()[:8])
    # Each of 4 devices keeps 32 bytes of the sum and sends 3 times as many, in each of 5 turns.
    found = benchmarks("collectives").sent(TPU_HLO, mesh)
    assert found == {"data": {"reduce-scatter": 5 * 3 * 32}}
    with pytest.raises(ValueError, match="How often does this loop turn"):
        benchmarks("collectives").sent(TPU_HLO.replace("LT", "NE"), mesh)
    # Devices in another order: 0, 2, 4, 6, 1, 3, 5, 7 as [2, 4].
    turned = TPU_HLO.replace(
        "mesh['axis_0'=4,'axis_1'=2] {'axis_0'}",
        "mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_1'}",
    )
    assert benchmarks("collectives").sent(turned, mesh) == found
    with pytest.raises(ValueError, match="Which devices are these"):
        benchmarks("collectives").sent(TPU_HLO.replace("'axis_0'=4", "'axis_0':(2)2"), mesh)


def test_padding_worked_by_hand(benchmarks):
    padding = benchmarks("padding")
    index = {
        "number": np.arange(4),
        "prompt_lengths": np.array([[16], [16], [32], [24]]),
        "response_lengths": np.array([[16, 16], [16, 8], [16, 16], [16, 16]]),
        "images": np.ones(4, int),
        "cells": np.ones(4, int),
    }
    # Two rows of 16 + 2 x 16 tokens, 8 of them padding, and two of 32 + 2 x 16, 8 of them padding.
    assert padding.share(index, 2, 2) == pytest.approx(16 / (2 * 48 + 2 * 64))
    assert padding.share(index, 2, 1) == pytest.approx(48 / (4 * 64))
    assert padding.least(index) == pytest.approx(8 / (2 * 48 + 64 + 56))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_without_a_compiler_for_tpus_the_error_says_what_to_install(benchmarks):
    with pytest.raises(SystemExit, match=r"requirements-tpu\.txt"):
        benchmarks("tpu").chips("v5p:2x2x1")


@pytest.mark.slow
def test_under_fsdp_a_step_sends_parameters_and_gradients_but_no_activations(benchmarks):
    """Of pictures, too: their activations once crossed the mesh in every layer of the tower."""
    common, scale, weights = (
        benchmarks(name) for name in ("common", "scale", "rubric_jax.models.weights")
    )
    # More rows than parameters are wide, so that activations would stand out.
    size = common.Size(**TOY | {"rows": 64, "image": 56, "prompt": 24})
    sent = scale.compiled_sends(size, "fsdp=8", 4, "none")["sent"]
    shapes = jax.eval_shape(common.vlm(size).init, jax.random.key(0))
    parameters = 4 * weights.count(shapes)
    assert set(sent) == {"fsdp"}
    assert sent["fsdp"]["all-reduce"] < 1.1 * 2 * 7 / 8 * parameters
    assert sent["fsdp"]["all-gather"] < 1.1 * 2 * parameters  # forward and backward pass


@pytest.mark.sweep
def test_a_step_is_timed_and_written_with_its_sizes(benchmarks, tmp_path, monkeypatch):
    common, step = benchmarks("common"), benchmarks("step")
    monkeypatch.setitem(common.SIZES, "cpu", common.Size(**TOY | {"rows": 2}))
    out = tmp_path / "found.jsonl"
    given = ["step.py", "--repeats=2", "--branches=2", "--prompt=8", "--response=4", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", given)
    step.main()
    (line,) = map(json.loads, out.read_text().splitlines())
    assert line["benchmark"] == "step"
    assert line["setting"] == "prompt 8, 2 branches, response 4"
    assert line["pairs_per_s"] == pytest.approx(2 / line["median_s"])
    assert line["tokens_per_s"] == pytest.approx(2 * 16 / line["median_s"])
    assert line["step_bytes"] > line["temporary_bytes"] > 0
    assert line["versions"]["jax"] == jax.__version__
    assert str(out) not in line["command"]


SIDE = """
import sys
sys.path.insert(0, {folder!r})
import turns
losses = iter((3.0, 2.0, 1.0))
imported = turns.resident()
def step():
    global held
    held = bytearray(64 * 2**20)
    return next(losses)
turns.serve(step, {{"told": 7}}, imported=imported)
"""


def test_sides_step_in_turns_and_say_what_they_held(benchmarks, tmp_path):
    turns = benchmarks("turns")
    code = SIDE.format(folder=str(FOLDER))
    log = str(tmp_path / "log")
    side = turns.Side("toy", [sys.executable, "-c", code], threads=1, log=log)
    assert side.ready() == {"told": 7}
    side.step()
    side.forget()
    side.step()
    side.step()
    assert side.losses == [3.0, 2.0, 1.0]
    assert len(side.seconds) == 2  # what came before `forget` was not timed
    memory = side.end()
    assert 64 * 2**20 <= memory["steps"] <= 200 * 2**20
    assert memory["whole life"] >= memory["steps"]


def test_a_side_that_dies_is_named_with_what_it_said(benchmarks, tmp_path):
    turns = benchmarks("turns")
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    side = turns.Side("toy", command, threads=1, log=str(tmp_path / "log"))
    with pytest.raises(RuntimeError, match=r"'toy' ended before(.|\n)*no such model"):
        side.ready()


def test_sides_that_compute_something_else_are_not_compared(benchmarks):
    against = benchmarks("against")

    class Side:
        def __init__(self, name, *losses):
            self.name, self.losses = name, list(losses)

    against.check([Side("ours", 0.6, 1e-4), Side("trl", 0.6001, 1.1e-4)])
    with pytest.raises(RuntimeError, match="ours and trl do not compute the same"):
        against.check([Side("ours", 0.6, 1e-4), Side("trl", 0.602, 1e-4)])


def test_required_flops_of_a_roofline_worked_by_hand(benchmarks):
    common, roofline = benchmarks("common"), benchmarks("roofline")
    size = common.Size(**TOY)
    found = roofline.step(size, 3)
    per_token = 2 * 64 * (4 * 64 + 3 * 96)  # attention's and the MLP's matrices
    pairs = 8 * 8 / 2 + 2 * 256 * (8 + 128)  # of a query and a key
    text = 2 * ((8 + 512) * per_token + 4 * 64 * pairs) + 2 * 512 * 64 * 64
    tower = 2 * 5 * (2 * 64 * 12 * 64 + 4 * 5 * 64) + 2 * 4 * 588 * 64
    projector = 4 * 2 * 64 * 128
    assert found["flops"] == pytest.approx(3 * 3 * (text + tower + projector))
    assert found["state"] == 16 * roofline.count(size)


def test_every_command_of_make_bench_names_a_file_and_flags_that_exist():
    command = [sys.executable, str(FOLDER / "run.py"), "--list"]
    for more in ([], ["--gpu"]):
        found = subprocess.run([*command, *more], check=True, capture_output=True, text=True)
        for line in found.stdout.splitlines():
            name, *words = shlex.split(line)
            text = (FOLDER / name).read_text() + (FOLDER / "common.py").read_text()
            for word in words:
                # Fields of a setting are flags of step.py.
                flag = word.removeprefix("--").split("=")[0]
                if word.startswith("--"):
                    assert f'"--{flag}"' in text or f"    {flag}: " in text, line
    assert len(os.listdir(FOLDER / "results")) > 0


def test_quartiles_of_a_few_values(benchmarks):
    common = benchmarks("common")
    assert common.quartiles([2.0]) == (2.0, 2.0, 2.0)
    np.testing.assert_allclose(common.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]), (2.0, 3.0, 4.0))
