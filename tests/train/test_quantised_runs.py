"""Whole runs of an adapter over a base in few bits."""

import jax
import numpy as np
import pytest

from rubric_jax import stages
from rubric_jax.models import adapters
from rubric_jax.train import loop, passes
from rubric_jax.train import setup as setup_lib
from tests.train import runs


def config(**model):
    return runs.config(
        model={"quantise": "nf4", "adapter": {"rank": 2, "alpha": 8.0}, **model},
        data={"cache": str(runs.root() / "cache")},
        mesh={"data": 1, "fsdp": -1},
        objective={"dpo": runs.PAIR},
        optimizer={"learning_rate": 0.05},
        train={"reference": "step", "steps": 4, "log_every": 1, "checkpoint_every": 2},
    )


@pytest.mark.slow
def test_the_reference_is_the_quantised_base_and_the_adapter_is_exported(tmp_path):
    made = config()
    assert loop.train(made, str(tmp_path)).step == 4
    losses = [line["loss"] for line in runs.metrics(tmp_path) if "loss" in line]
    np.testing.assert_allclose(losses[0], np.log(2), rtol=1e-5)  # policy = reference
    assert losses[-1] < losses[0]
    held = runs.parameters(tmp_path)
    assert held
    assert all(map(adapters.is_adapter, held))
    stages.export(str(tmp_path), str(tmp_path / "hf"), adapter=str(tmp_path / "peft"))
    assert (tmp_path / "hf" / "model.safetensors").exists()
    assert (tmp_path / "peft" / "adapter_model.safetensors").exists()


def test_loading_quantises_onto_the_mesh_and_names_the_references_apart(tmp_path):
    setup = setup_lib.build(config())
    with jax.set_mesh(setup.mesh):
        params = setup_lib.load(setup)
    kernel = params["decoder"]["layers"]["gate"]["kernel"]
    assert kernel["codes"].dtype == np.uint8
    places = setup.placement[0]["decoder"]["layers"]["gate"]["kernel"]
    assert kernel["codes"].sharding == places["codes"]
    plain = setup_lib.build(config(quantise=""))
    kinds = {passes.reference_store(one, str(tmp_path)).dtype for one in (setup, plain)}
    assert len(kinds) == 2


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"adapter": {}}, "kernels in few bits cannot train; set config.model.adapter"),
        ({"adapter": {"dora": True}}, "adapter.dora learns norms of kernels"),
    ],
)
def test_what_cannot_be_trained_over_few_bits_is_refused(model, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        loop.train(config(**model), str(tmp_path))
