"""Every other family against transformers in float32, on small random checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from rubric_jax import config as config_lib
from rubric_jax import models, sampling, sharding, types
from rubric_jax.likelihoods import autoregressive
from rubric_jax.models import layers, weights
from tests import toys
from tests.parity import checkpoints, tiled
from tests.parity.test_llava import batch_of, rows, torch_grads

LAYOUT = types.Layout.of(("chosen", "rejected"))

VARIANTS = {
    "paligemma1": ("paligemma", {}),
    "paligemma1_wide": ("paligemma", {"num_key_value_heads": 4, "vision": {"image_size": 24}}),
    "paligemma2": ("paligemma", {"generation": 2, "query_pre_attn_scalar": 9}),
    "paligemma2_window": (
        "paligemma",
        {
            "generation": 2,
            "sliding_window": 5,
            "num_hidden_layers": 4,
            "num_key_value_heads": 2,
            "final_logit_softcapping": 2.0,
            "attn_logit_softcapping": 1.5,
        },
    ),
    "gemma3": ("gemma3", {}),
    "gemma3_pooled": (
        "gemma3",
        {
            "vision": {"image_size": 32},
            "tokens": 4,
            "num_key_value_heads": 1,
            "query_pre_attn_scalar": 7,
            "sliding_window": 4,
        },
    ),
    "gemma3_scaled_rope": (
        "gemma3",
        {
            "num_hidden_layers": 4,
            "sliding_window_pattern": 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    **tiled.VARIANTS,
}


@pytest.fixture(params=VARIANTS, scope="module")
def pair(request, tmp_path_factory):
    """(family, torch model, directory, VLM, its parameters)."""
    return both(request.param, tmp_path_factory.mktemp(request.param))


def both(variant, directory, **more):
    kind, changes = VARIANTS[variant]
    made = getattr(tiled if kind in tiled.TILES else checkpoints, kind)
    model = made(directory, seed=len(variant), **changes | more)
    family = tiled.FAMILIES.get(kind, kind)
    vlm = models.build(family, directory)
    shapes = jax.eval_shape(vlm.init, jax.random.key(0))
    params = weights.load(directory, vlm.weights, shapes, dtype=jnp.float32)
    return family, model, directory, vlm, params


def example(family, model):
    """(prompts, responses, images per prompt, pictures) with one, two and no images."""
    if family in tiled.TILES:
        return tiled.example(family, model)
    vision = model.config.vision_config
    side = vision.image_size
    tokens = getattr(model.config, "mm_tokens_per_image", (side // vision.patch_size) ** 2)
    prompts, responses, counts = rows(tokens)
    pixels = np.random.default_rng(1).normal(size=(3, side, side, 3)).astype(np.float32)
    return prompts, responses, counts, toys.pictures(pixels)


def inputs(family, prompt, response, images):
    """What the family's processor would hand to the torch model."""
    ids = torch.tensor([prompt + response])
    if family in tiled.TILES:
        return {"input_ids": ids, **(tiled.inputs(family, images) if images else {})}
    suffix = torch.arange(ids.shape[1])[None] >= len(prompt)
    kinds = suffix if family == "paligemma" else ids == checkpoints.IMAGE_TOKEN
    found = {"input_ids": ids, "token_type_ids": kinds.long()}
    if images:
        pixels = np.stack([picture.pixels for picture in images])
        found["pixel_values"] = torch.tensor(pixels).permute(0, 3, 1, 2)
    return found


def by_prompt(pictures, counts):
    ends = np.cumsum(counts)
    return [pictures[end - count : end] for end, count in zip(ends, counts)]


def torch_logps(family, model, prompts, responses, counts, pictures, branch):
    """Sequence by sequence, unpadded: the plainest route. A list of [T_b]."""
    out = []
    for prompt, two, images in zip(prompts, responses, by_prompt(pictures, counts)):
        given = inputs(family, prompt, two[branch], images)
        logits = model(**given).logits[0, :-1].log_softmax(-1)
        logps = logits.gather(-1, given["input_ids"][0, 1:, None])[:, 0]
        out.append(logps[len(prompt) - 1 :])
    return out


def test_logps_and_gradients_equal_transformers(pair):
    family, model, _, vlm, params = pair
    prompts, responses, counts, pictures = example(family, model)
    batch = batch_of(vlm, prompts, responses, counts, pictures)
    signs = np.where(np.arange(2) == 0, 1.0, -0.5)  # another factor per branch, so both matter

    def pulled(params):
        h = vlm.hidden(params, batch, LAYOUT)
        logps = autoregressive.token_logps(
            h, vlm.unembed(params), batch.responses, chunk=4, cap=vlm.logit_cap
        )
        return jnp.sum(logps * batch.mask * signs[None, :, None]), logps

    grads, ours = jax.jit(jax.grad(pulled, has_aux=True))(params)
    ours = np.asarray(ours)

    model.zero_grad()
    total = 0.0
    for n in range(2):
        theirs = torch_logps(family, model, prompts, responses, counts, pictures, n)
        for b, row in enumerate(theirs):
            np.testing.assert_allclose(ours[b, n, : len(row)], row.detach(), atol=1e-4)
            total = total + signs[n] * row.sum()
    total.backward()
    wanted = torch_grads(model, vlm)
    found = dict(weights.tensors_of(grads, vlm.weights, {}))
    assert set(found) == set(wanted)
    # Key biases have no gradient but rounding, so "relative" needs a floor.
    floor = 1e-4 * max(np.abs(want).max() for want in wanted.values())
    for name, want in wanted.items():
        scale = max(np.abs(want).max(), floor)
        np.testing.assert_allclose(found[name] / scale, want / scale, atol=1e-3, err_msg=name)


def test_branches_equal_separate_rows(pair):
    family, model, _, vlm, params = pair
    prompts, responses, counts, pictures = example(family, model)
    batch = batch_of(vlm, prompts, responses, counts, pictures)

    def logps(batch, layout):
        h = vlm.hidden(params, batch, layout)
        return autoregressive.dense(h, vlm.unembed(params), batch.responses, cap=vlm.logit_cap)

    together = jax.jit(logps, static_argnums=1)(batch, LAYOUT)
    for n in range(2):
        alone = batch._replace(responses=batch.responses[:, n : n + 1])
        apart = jax.jit(logps, static_argnums=1)(alone, types.Layout.of(("only",)))
        real = batch.mask[:, n] != 0
        np.testing.assert_allclose(together[:, n][real], apart[:, 0][real], atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_sampling_equals_generate(variant, tmp_path, monkeypatch):
    if list(VARIANTS).index(variant) % 2:  # the loop over stacked layers, as on other devices
        monkeypatch.setattr(layers, "one_cpu", lambda: False)
    # A random model whose unembedding is its scaled embedding says its last token over and over.
    family, model, _, vlm, params = both(variant, tmp_path, tie_word_embeddings=False)
    prompts, responses, counts, pictures = example(family, model)
    batch = batch_of(vlm, prompts, responses, counts, pictures)
    length = 32
    wanted = []
    for prompt, images in zip(prompts, by_prompt(pictures, counts)):
        given = inputs(family, prompt, [], images)
        out = model.generate(
            **given,
            attention_mask=torch.ones_like(given["input_ids"]),
            do_sample=False,
            max_new_tokens=length,
            eos_token_id=None,
            pad_token_id=0,
        )
        wanted.append(out[0, len(prompt) :].numpy())
    wanted = np.stack(wanted)
    assert min(len(set(row)) for row in wanted) > 2
    seeds = np.zeros(len(prompts), np.uint32)
    got = sampling.sample(
        vlm, params, batch, seeds, count=1, length=length, temperature=0.0, stop=()
    )
    np.testing.assert_array_equal(np.asarray(got.ids)[:, 0], wanted)


def test_import_then_export_is_bit_equal_and_loads_in_transformers(pair, tmp_path):
    _, model, directory, vlm, params = pair
    weights.write(tmp_path, params, vlm.weights, source=directory)
    before = safetensors.numpy.load_file(directory / weights.SINGLE)
    after = safetensors.numpy.load_file(tmp_path / weights.SINGLE)
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.dtype == after[name].dtype
        np.testing.assert_array_equal(array, after[name], err_msg=name)
    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=0)


PUBLISHED = {  # the shapes of the largest published checkpoints
    "paligemma": transformers.PaliGemmaConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 896,
            "patch_size": 14,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "gemma2",
            "hidden_size": 4608,
            "intermediate_size": 36864,
            "num_hidden_layers": 46,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "head_dim": 128,
            "query_pre_attn_scalar": 144,
            "vocab_size": 257216,
        },
        projection_dim=4608,
        hidden_size=4608,
        image_token_index=257152,
    ),
    "gemma3": transformers.Gemma3Config(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 896,
            "patch_size": 14,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "gemma3_text",
            "hidden_size": 5376,
            "intermediate_size": 21504,
            "num_hidden_layers": 62,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "head_dim": 128,
            "query_pre_attn_scalar": 168,
            "sliding_window": 1024,
            "vocab_size": 262208,
        },
    ),
    **tiled.PUBLISHED,
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_the_largest_published_size_resolves_with_a_rule_for_every_parameter(family):
    config = PUBLISHED[family]
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    vlm = models.MODELS[family](config.to_dict())
    theirs = {vlm.weights.canonical(n): tuple(p.shape) for n, p in model.named_parameters()}
    assert theirs == {weight.name: weight.shape for weight in vlm.weights.weights}
    shapes = jax.eval_shape(vlm.init, jax.random.key(0))
    assert weights.count(shapes) == sum(p.numel() for p in model.parameters())
    mesh = sharding.make(config_lib.Mesh(fsdp=4, tensor=2))
    sharding.place(mesh, vlm.rules, shapes)
