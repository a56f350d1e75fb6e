"""Sampling against transformers: greedy token for token, filters logit for logit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from rubric_jax import models, sampling
from rubric_jax.models import weights
from tests.parity import checkpoints
from tests.parity.test_llava import VARIANTS, example

LENGTH = 32


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
    assert min(len(set(row)) for row in wanted) > 2  # not one token over and over

    def greedy(length, stop):
        seeds = np.zeros(len(prompts), np.uint32)
        kwargs = {"count": 1, "length": length, "temperature": 0.0, "stop": stop}
        got = sampling.sample(vlm, params, batch, seeds, **kwargs)
        return np.asarray(got.ids)[:, 0]

    np.testing.assert_array_equal(greedy(LENGTH, ()), wanted)


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    return checkpoints.llava(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("top_k", [0, 1, 7, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.97, 0.6, 1e-4])
@pytest.mark.parametrize("min_p", [0.0, 0.004, 0.3, 1.0])
def test_filters_leave_what_the_warpers_of_generate_leave(generator, top_k, top_p, min_p):
    temperature = 0.7
    logits = np.random.default_rng(0).normal(size=(16, 97)).astype(np.float32) * 2
    settings = transformers.GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p or None,
    )
    warp = generator._get_logits_processor(settings)  # in the order of `generate`
    assert len(warp) == 1 + (top_k > 0) + (top_p < 1) + (min_p > 0)
    want = warp(torch.zeros((16, 1), dtype=torch.long), torch.tensor(logits)).numpy()
    got = sampling.filtered(jnp.asarray(logits) / temperature, top_k, top_p, min_p)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    if (top_k, top_p, min_p) == (7, 0.6, 0.004):
        assert 16 < np.isfinite(want).sum() < 16 * 7  # more than one filter bites
