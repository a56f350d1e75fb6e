"""Greedy sampling against transformers' `generate`, token for token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rubric_jax import models, sampling
from rubric_jax.models import weights
from tests.parity import checkpoints
from tests.parity.test_llava import VARIANTS, example

LENGTH = 20


@pytest.mark.parametrize("variant", ["plain", "tied", "two_feature_layers", "llama3_rope"])
def test_greedy_sampling_equals_generate(variant, tmp_path):
    model = checkpoints.llava(tmp_path, seed=11, **VARIANTS[variant])
    vlm = models.build("llava", tmp_path)
    shapes = jax.eval_shape(vlm.init, jax.random.key(0))
    params = weights.load(tmp_path, vlm.weights, shapes, dtype=jnp.float32)
    prompts, _, counts, pixels, batch = example(vlm, model)

    wanted, first = [], 0
    for prompt, count in zip(prompts, counts):  # one by one, unpadded
        images = torch.tensor(pixels[first : first + count]).permute(0, 3, 1, 2)
        first += count
        ids = torch.tensor([prompt])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **({"pixel_values": images} if count else {}),
            do_sample=False,
            max_new_tokens=LENGTH,
            eos_token_id=None,
            pad_token_id=0,
        )
        wanted.append(out[0, len(prompt) :].numpy())
    wanted = np.stack(wanted)
    assert min(len(set(row)) for row in wanted) > 4  # not one token over and over

    def greedy(length, stop):
        key = jax.random.key(0)
        kwargs = {"count": 1, "length": length, "temperature": 0.0, "stop": stop}
        got = sampling.sample(vlm, params, batch, key, **kwargs)
        return np.asarray(got.ids)[:, 0]

    np.testing.assert_array_equal(greedy(LENGTH, ()), wanted)
