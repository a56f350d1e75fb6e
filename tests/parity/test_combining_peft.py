"""Combined adapters against peft's add_weighted_adapter."""

import numpy as np
import peft
import pytest
import torch

from rubric_jax.models import adapter_files, combining
from tests.parity import test_adapters_peft as single

SHARES = {"one": 0.7, "two": 0.3}


@pytest.mark.parametrize(("function", "theirs"), [("concatenate", "cat"), ("average", "linear")])
def test_combinations_are_those_of_peft(function, theirs, tmp_path):
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=r".*language_model.*(q|o|up)_proj",
        init_lora_weights=False,
    )
    model = peft.get_peft_model(single.torch_base(), config, adapter_name="one")
    model.add_adapter("two", config)
    model.add_weighted_adapter(list(SHARES), list(SHARES.values()), "both", theirs)
    model.save_pretrained(tmp_path)
    directories = {name: tmp_path / name for name in (*SHARES, "both")}
    named = adapter_files.read_named(directories, single.base()[1])
    want = named.pop("both")
    made = combining.COMBINATIONS[function](named, SHARES)
    ours, others = (delta(one) for one in (made, want))
    assert ours.keys() == others.keys()
    for path in ours:
        np.testing.assert_allclose(ours[path], others[path], atol=1e-5, err_msg=path)


def delta(one):
    """{site: s a b}."""
    found = {}
    for site in one.adapter.sites:
        layer = one.leaves
        for part in site.path.split("/"):
            layer = layer[part]
        a = layer["lora_a"].reshape(len(layer["lora_a"]), -1, one.adapter.rank)
        b = layer["lora_b"].reshape(len(a), one.adapter.rank, -1)
        found[site.path] = one.adapter.scale * a @ b
    return found
