"""Whole runs of a tiny model under an adapter."""

import dataclasses
import json
import math
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from rubric_jax import checkpoint, paths, stages
from rubric_jax import config as config_lib
from rubric_jax.models import adapter_files, adapters, head_files
from rubric_jax.train import loop, memory
from rubric_jax.train import setup as setup_lib
from tests.train import runs

LORA = {"rank": 2, "alpha": 8.0}


def config(reference, **fields):
    return runs.config(
        model={"adapter": fields},
        data={"cache": str(runs.root() / "cache")},
        mesh={"data": 1, "fsdp": -1},
        objective={"dpo": runs.PAIR},
        optimizer={"learning_rate": 0.05},
        train={"reference": reference, "steps": 6, "log_every": 1, "checkpoint_every": 3},
    )


def bytes_of(directory):
    return pathlib.Path(directory, "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's config and work directory."""
    workdir = tmp_path_factory.mktemp("run")
    made, base = config("cache", **LORA), bytes_of(runs.root() / "model")
    assert loop.train(made, str(workdir)).step == 6
    assert bytes_of(runs.root() / "model") == base
    return made, workdir


@pytest.mark.slow
def test_the_loss_falls_and_checkpoints_hold_the_adapter_alone(trained):
    _, workdir = trained
    losses = [line["loss"] for line in runs.metrics(workdir) if "loss" in line]
    np.testing.assert_allclose(losses[0], np.log(2), rtol=1e-5)  # policy = reference
    assert losses[-1] < losses[0] - 0.02
    held = runs.parameters(workdir)
    assert held
    assert all(map(adapters.is_adapter, held))


@pytest.mark.slow
def test_a_run_resumes_exactly(trained, tmp_path):
    made, workdir = trained
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    assert loop.train(made, str(tmp_path / "run")).step == 6
    runs.assert_same_bits(workdir, tmp_path / "run")


@pytest.mark.slow
def test_an_export_is_the_base_under_the_adapter(trained, tmp_path):
    made, workdir = trained
    merged, peft = tmp_path / "merged", tmp_path / "adapter"
    stages.export(str(workdir), str(merged), adapter=str(peft))
    assert json.loads((peft / adapter_files.CONFIG).read_text())["r"] == 2
    models = {
        "merged": {"checkpoint": str(merged), "adapter": {}},
        "adapter": {"adapter": {"start": str(peft)}},
    }
    sums = {}
    for name, fields in models.items():
        model = dataclasses.replace(made.model, **fields)
        out = str(tmp_path / f"{name}.npz")
        sums[name] = stages.score(dataclasses.replace(made, model=model), out, None)["sums"]
    np.testing.assert_allclose(sums["merged"], sums["adapter"], rtol=1e-4)
    assert bytes_of(merged) != bytes_of(runs.root() / "model")


@pytest.mark.slow
def test_an_adapter_goes_on_from_where_it_was_and_has_that_as_its_reference(trained, tmp_path):
    stages.export(str(trained[1]), "", adapter=str(tmp_path / "adapter"))
    made = config("step", start=str(tmp_path / "adapter"))
    made = dataclasses.replace(made, train=dataclasses.replace(made.train, steps=1))
    assert loop.train(made, str(tmp_path / "run")).finished
    losses = [line["loss"] for line in runs.metrics(tmp_path / "run") if "loss" in line]
    np.testing.assert_allclose(losses[0], np.log(2), rtol=1e-5)


@pytest.mark.slow
def test_another_base_is_refused_on_resuming(trained, tmp_path):
    made, workdir = trained
    shutil.copytree(runs.root() / "model", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors[min(tensors)] += 1
    safetensors.numpy.save_file(tensors, file)
    shutil.copytree(workdir, tmp_path / "run")
    model = dataclasses.replace(made.model, checkpoint=str(tmp_path / "model"))
    train = dataclasses.replace(made.train, reference="step")  # asks for no pass over the data
    made = dataclasses.replace(made, model=model, train=train)
    checkpoint.claim(str(tmp_path / "run"), config_lib.to_dict(made), force=True)
    with pytest.raises(ValueError, match=r"base: .* -> "):
        loop.train(made, str(tmp_path / "run"))


def test_memory_counts_what_trains_and_no_second_base():
    setup = setup_lib.build(config("step", **LORA))
    source = setup_lib.source(setup, setup.config.data.path, "", setup.config.data.cache)
    plan = setup_lib.plan(setup, source, shuffle=True)
    text = "\n".join(memory.lines(setup, plan))
    leaves, places = paths.flatten(setup.shapes), paths.flatten(setup.placement[0])
    kept = {path: leaf for path, leaf in leaves.items() if adapters.trains(path)}
    trains = sum(leaf.size for leaf in kept.values())
    cut = sum(math.prod(places[path].shard_shape(leaf.shape)) for path, leaf in kept.items())
    total = sum(leaf.size for leaf in jax.tree.leaves(setup.shapes))
    assert f"parameters: {total:,}, of which {trains:,} train" in text
    assert "reference 0 B" in text
    assert f"gradients {memory._size(4 * cut)}" in text
    assert f"optimizer {memory._size(4 * 2 * cut + 8)}" in text  # AdamW's moments and two counts


def test_export_without_an_adapter_says_so(tmp_path):
    plain = runs.config()
    checkpoint.claim(str(tmp_path), json.loads(json.dumps(dataclasses.asdict(plain))))
    with pytest.raises(ValueError, match="trained no adapter"):
        stages.export(str(tmp_path), "", adapter=str(tmp_path / "adapter"))


@pytest.mark.slow
def test_heads_train_beside_an_adapter_and_go_with_it(tmp_path):
    made = config("step", **LORA)
    model = dataclasses.replace(made.model, heads={"reward": {"head": "last"}})
    spec = {"dpo": runs.PAIR, "bt": {"win": "chosen", "lose": "rejected", "head": "reward"}}
    train = dataclasses.replace(made.train, steps=4, checkpoint_every=2)
    made = dataclasses.replace(made, model=model, objective=spec, train=train)
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert loop.train(made, str(whole)).step == 4
    held = runs.parameters(whole)
    heads = {path for path in held if path.startswith("heads/")}
    assert heads == {"heads/reward/kernel", "heads/reward/bias"}
    assert all(adapters.is_adapter(path) for path in held.keys() - heads)
    setup = setup_lib.build(made)
    first = paths.flatten(jax.device_get(setup_lib.load(setup)))
    moved = np.abs(first["heads/reward/kernel"] - held["heads/reward/kernel"])
    assert moved.max() > 1e-3  # of a bias the pair's difference has no gradient

    shutil.copytree(whole, again)
    shutil.rmtree(again / "checkpoints" / "4")
    assert loop.train(made, str(again)).step == 4
    runs.assert_same_bits(whole, again)

    stages.export(str(whole), str(tmp_path / "hf"))
    exported = head_files.tensors(tmp_path / "hf")
    np.testing.assert_array_equal(exported["reward/kernel"], held["heads/reward/kernel"])


@pytest.mark.slow
def test_a_reference_that_moves_takes_the_adapter_over(tmp_path):
    made = config("step", **LORA)
    train = dataclasses.replace(made.train, steps=4, checkpoint_every=2, refresh=3)
    made = dataclasses.replace(made, train=train)
    assert loop.train(made, str(tmp_path / "whole")).step == 4
    losses = [line["loss"] for line in runs.metrics(tmp_path / "whole") if "loss" in line]
    # The policy is its own reference in the first step and, after step 3, in the fourth.
    np.testing.assert_allclose([losses[0], losses[3]], np.log(2), rtol=1e-5)
    assert abs(losses[1] - np.log(2)) > 1e-3
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "4")
    assert loop.train(made, str(tmp_path / "again")).step == 4
    runs.assert_same_bits(tmp_path / "whole", tmp_path / "again")


@pytest.mark.parametrize(
    ("train", "model", "message"),
    [
        ({"refresh_mixup": 0.5}, {}, r"refresh_mixup is 0.5: .*Under config.model.adapter set it"),
        ({}, {"reference": "elsewhere"}, r"refresh is 2: .*config.model.reference names another"),
    ],
)
def test_a_move_that_adapters_cannot_make_is_refused(train, model, message):
    made = config("step", **LORA)
    made = dataclasses.replace(
        made,
        model=dataclasses.replace(made.model, **model),
        train=dataclasses.replace(made.train, refresh=2, **train),
    )
    with pytest.raises(ValueError, match=message):
        setup_lib.objective(made)
