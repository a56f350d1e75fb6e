"""Qwen2.5-VL and Qwen3-VL against transformers in float32, on small random checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers

from rubric_jax import config as config_lib
from rubric_jax import models, paths, sampling, sharding, types
from rubric_jax.likelihoods import autoregressive
from rubric_jax.models import adapter_files, adapters, layers, weights
from tests.parity import checkpoints
from tests.parity.test_adapters_peft import assert_same, begun, moved_by_peft
from tests.parity.test_llava import torch_grads

LAYOUT = types.Layout.of(("chosen", "rejected"))
SHAPES = ((3, 5), (2, 2), (4, 3))  # rows and columns of cells of the three pictures

VARIANTS = {
    "qwen2_5": ("qwen2_5_vl", SHAPES, {}),
    "qwen2_5_tied": (
        "qwen2_5_vl",
        ((1, 7), (5, 1), (5, 4)),
        {
            "tied": True,
            "num_key_value_heads": 1,
            "hidden_size": 48,
            "sections": (2, 2, 2),
            "vision": {"window_size": 13, "depth": 4, "fullatt_block_indexes": [0, 3]},
        },
    ),
    "qwen2_5_window": (
        "qwen2_5_vl",
        ((6, 6), (1, 1), (2, 9)),
        {
            "num_key_value_heads": 4,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 1,
            "vision": {"num_heads": 4, "temporal_patch_size": 1, "fullatt_block_indexes": []},
        },
    ),
    "qwen3": ("qwen3_vl", SHAPES, {}),
    "qwen3_tied": (
        "qwen3_vl",
        ((1, 6), (7, 2), (1, 1)),
        {
            "tied": True,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "sections": (4, 3, 1),
            "vision": {"num_position_embeddings": 25, "deepstack_visual_indexes": [2]},
        },
    ),
    "qwen3_biased": (
        "qwen3_vl",
        ((5, 5), (2, 3), (3, 1)),
        {
            "attention_bias": True,
            "num_key_value_heads": 4,
            "num_hidden_layers": 3,
            "head_dim": 12,
            "sections": (2, 2, 2),
            "vision": {"num_heads": 4, "depth": 4, "deepstack_visual_indexes": [0, 2, 3]},
        },
    ),
}


@pytest.fixture(params=VARIANTS, scope="module")
def pair(request, tmp_path_factory):
    """(torch model, directory, VLM, its parameters, an example)."""
    return both(request.param, tmp_path_factory.mktemp(request.param))


def both(variant, directory):
    family, shapes, changes = VARIANTS[variant]
    model = getattr(checkpoints, family)(directory, seed=len(variant), **changes)
    # Some of them compute their layers again in the backward pass.
    vlm = models.build(family, directory, remat="full" if changes else "none")
    params = jax.eval_shape(vlm.init, jax.random.key(0))
    params = weights.load(directory, vlm.weights, params, dtype=jnp.float32)
    return model, directory, vlm, params, example(model, shapes)


def example(model, shapes):
    """(prompts, responses, pictures of each prompt) with one, two and no pictures."""
    vision = model.config.vision_config
    merge = vision.spatial_merge_size
    values = 3 * vision.temporal_patch_size * vision.patch_size**2
    rng = np.random.default_rng(0)
    pictures = [
        types.Picture(rng.normal(size=(1, *shape, merge**2, values)).astype(np.float32), (1, 1))
        for shape in shapes
    ]
    text = lambda n: rng.integers(1, 90, n).tolist()  # noqa: E731
    a, b, c = ([checkpoints.IMAGE_TOKEN] * int(np.prod(shape)) for shape in shapes)
    prompts = [text(3) + a + text(4), b + text(2) + c + text(1), text(5)]
    responses = [[text(6), text(3)], [text(1), text(4)], [text(5), text(5)]]
    return prompts, responses, [pictures[:1], pictures[1:], []]


def batch_of(vlm, prompts, responses, shown):
    """One group whose table has the pictures in another order, with room for one more."""
    size, length = max(map(len, prompts)) + 3, max(len(r) for two in responses for r in two)
    ids = np.zeros((len(prompts), 1, size), np.int32)
    answers = np.zeros((len(prompts), 2, length), np.int32)
    mask = np.zeros(answers.shape, np.float32)
    for b, prompt in enumerate(prompts):
        ids[b, 0, : len(prompt)] = prompt
        for n, response in enumerate(responses[b]):
            answers[b, n, : len(response)] = response
            mask[b, n, : len(response)] = 1
    table = [picture for pictures in reversed(shown) for picture in pictures]
    places = {id(picture): place for place, picture in enumerate(table)}
    slots = [[[places[id(picture)] for picture in pictures]] for pictures in shown]
    entries = sum(picture.pixels.shape[0] for picture in table)
    media = vlm.media(ids, [table], slots, entries + 1, 37)
    lengths = np.array([[len(p)] for p in prompts], np.int32)
    labels = types.Labels(*(np.zeros(()) for _ in range(4)))
    return types.Batch(ids, lengths, media, answers, mask, labels)


def inputs(model, ids, pictures):
    """What the family's processor would hand to the torch model."""
    ids = torch.tensor([ids])
    found = {"input_ids": ids, "mm_token_type_ids": (ids == checkpoints.IMAGE_TOKEN).int()}
    if pictures:
        merge = model.config.vision_config.spatial_merge_size
        flat = [p.pixels.reshape(-1, p.pixels.shape[-1]) for p in pictures]
        grids = [(t, merge * h, merge * w) for t, h, w in (p.pixels.shape[:3] for p in pictures)]
        found["pixel_values"] = torch.tensor(np.concatenate(flat))
        found["image_grid_thw"] = torch.tensor(grids)
    model.model.rope_deltas = None
    return found


def torch_logps(model, prompts, responses, shown, branch):
    """Sequence by sequence, unpadded: the plainest route. A list of [T_b]."""
    out = []
    for prompt, two, pictures in zip(prompts, responses, shown):
        given = inputs(model, prompt + two[branch], pictures)
        logits = model(**given).logits[0, :-1].log_softmax(-1)
        logps = logits.gather(-1, given["input_ids"][0, 1:, None])[:, 0]
        out.append(logps[len(prompt) - 1 :])
    return out


def test_logps_and_gradients_equal_transformers(pair):
    model, _, vlm, params, (prompts, responses, shown) = pair
    batch = batch_of(vlm, prompts, responses, shown)
    signs = np.where(np.arange(2) == 0, 1.0, -0.5)  # another factor per branch, so both matter

    def pulled(params):
        h = vlm.hidden(params, batch, LAYOUT)
        logps = autoregressive.token_logps(h, vlm.unembed(params), batch.responses, chunk=4)
        return jnp.sum(logps * batch.mask * signs[None, :, None]), logps

    grads, ours = jax.jit(jax.grad(pulled, has_aux=True))(params)
    ours = np.asarray(ours)
    model.zero_grad()
    total = 0.0
    for n in range(2):
        theirs = torch_logps(model, prompts, responses, shown, n)
        for b, row in enumerate(theirs):
            np.testing.assert_allclose(ours[b, n, : len(row)], row.detach(), atol=1e-4)
            total = total + signs[n] * row.sum()
    total.backward()
    wanted = torch_grads(model, vlm)
    found = dict(weights.tensors_of(grads, vlm.weights, {}))
    assert set(found) == set(wanted)
    floor = 1e-4 * max(np.abs(want).max() for want in wanted.values())
    for name, want in wanted.items():
        scale = max(np.abs(want).max(), floor)
        np.testing.assert_allclose(found[name] / scale, want / scale, atol=1e-3, err_msg=name)


def test_positions_are_those_of_transformers(pair):
    model, _, vlm, _, (prompts, responses, shown) = pair
    batch = batch_of(vlm, prompts, responses, shown)
    for b, prompt in enumerate(prompts[:2]):
        given = inputs(model, prompt, shown[b])
        wanted, deltas = model.model.get_rope_index(
            given["input_ids"], given["mm_token_type_ids"], image_grid_thw=given["image_grid_thw"]
        )
        ours = batch.media["positions"][b, 0, : len(prompt)]
        np.testing.assert_array_equal(ours, wanted[:, 0].T)
        assert batch.media["behind"][b, 0] == -int(deltas)


@pytest.mark.parametrize("pair", ["qwen2_5", "qwen3"], indirect=True)
def test_branches_equal_separate_rows(pair):
    _, _, vlm, params, (prompts, responses, shown) = pair
    batch = batch_of(vlm, prompts, responses, shown)

    def logps(batch, layout):
        h = vlm.hidden(params, batch, layout)
        return autoregressive.dense(h, vlm.unembed(params), batch.responses)

    together = jax.jit(logps, static_argnums=1)(batch, LAYOUT)
    for n in range(2):
        alone = batch._replace(responses=batch.responses[:, n : n + 1])
        apart = jax.jit(logps, static_argnums=1)(alone, types.Layout.of(("only",)))
        real = batch.mask[:, n] != 0
        np.testing.assert_allclose(together[:, n][real], apart[:, 0][real], atol=1e-5)


@pytest.mark.parametrize("variant", ["qwen2_5", "qwen3"])
def test_adapters_are_the_same_in_peft(variant, tmp_path):
    """On every linear layer of the torch model but its head, with random leaves."""
    model, _, vlm, params, (prompts, responses, shown) = both(variant, tmp_path / "base")
    adapter = adapter_files.open_adapter({"rank": 2, "targets": ((".*", True),)}, vlm)
    rng, flat = np.random.default_rng(1), {}
    for path, leaf in paths.flatten(begun(adapter, params)).items():
        noise = 0.1 * rng.normal(size=leaf.shape).astype(np.float32)
        flat[path] = leaf if path.endswith("scale") else noise
    leaves = adapters.nest(flat)
    adapter_files.write(tmp_path / "adapter", adapter, leaves, vlm.weights, base="")
    batch = batch_of(vlm, prompts, responses, shown)

    @jax.jit
    def logps(leaves):
        h = vlm.hidden(adapters.insert(params, leaves), batch, LAYOUT)
        return autoregressive.dense(h, vlm.unembed(params), batch.responses)

    linear = sum(isinstance(part, torch.nn.Linear) for part in model.modules()) - 1  # the head
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    assert sum(hasattr(part, "lora_A") for part in adapted.modules()) == linear

    def theirs():
        return [torch_logps(adapted.model, prompts, responses, shown, n) for n in range(2)]

    ours = logps(leaves)
    assert_same(ours, theirs())
    _, leaves = moved_by_peft(adapted, tmp_path / "theirs", vlm)
    again = logps(leaves)
    assert_same(again, theirs())
    assert np.abs((again - ours) * batch.mask).max() > 0.01


def test_greedy_sampling_equals_generate(pair, request, monkeypatch):
    model, _, vlm, params, (prompts, responses, shown) = pair
    if request.node.callspec.indices["pair"] % 2:  # the loop over stacked layers
        monkeypatch.setattr(layers, "one_cpu", lambda: False)
    batch = batch_of(vlm, prompts, responses, shown)
    wanted = []
    for prompt, pictures in zip(prompts, shown):
        given = inputs(model, prompt, pictures)
        out = model.generate(
            **given,
            attention_mask=torch.ones_like(given["input_ids"]),
            do_sample=False,
            max_new_tokens=32,
            eos_token_id=None,
            pad_token_id=0,
        )
        wanted.append(out[0, len(prompt) :].numpy())
    wanted = np.stack(wanted)
    # A random model whose unembedding is its embedding says its last token over and over.
    assert vlm.config.decoder.tied or min(len(set(w)) for w in wanted) > 2
    seeds = np.zeros(len(prompts), np.uint32)
    got = sampling.sample(vlm, params, batch, seeds, count=1, length=32, temperature=0.0, stop=())
    np.testing.assert_array_equal(np.asarray(got.ids)[:, 0], wanted)


def test_import_then_export_is_bit_equal_and_loads_in_transformers(pair, tmp_path):
    model, directory, vlm, params, _ = pair
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


# config.json of the largest published checkpoints: one as on the Hub, with the decoder's fields
# beside the tower's.
PUBLISHED = {
    "qwen2_5_vl": {
        "model_type": "qwen2_5_vl",
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "max_position_embeddings": 128000,
        "max_window_layers": 80,
        "num_attention_heads": 64,
        "num_hidden_layers": 80,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 152064,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "hidden_size": 1280,
            "intermediate_size": 3456,
            "out_hidden_size": 8192,
            "depth": 32,
            "num_heads": 16,
            "in_chans": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
        },
    },
    "qwen3_vl": {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "attention_bias": False,
            "head_dim": 128,
            "hidden_size": 5120,
            "intermediate_size": 25600,
            "max_position_embeddings": 262144,
            "num_attention_heads": 64,
            "num_hidden_layers": 64,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-6,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [24, 20, 20],
                "rope_type": "default",
            },
            "rope_theta": 5000000,
            "vocab_size": 151936,
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "deepstack_visual_indexes": [8, 16, 24],
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": 5120,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    },
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_the_largest_published_size_resolves_with_a_rule_for_every_parameter(family):
    config = transformers.CONFIG_MAPPING[family].from_dict(dict(PUBLISHED[family]))
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    vlm = models.MODELS[family](PUBLISHED[family])
    assert vlm.config == models.MODELS[family](config.to_dict()).config
    theirs = {vlm.weights.canonical(n): tuple(p.shape) for n, p in model.named_parameters()}
    assert theirs == {weight.name: weight.shape for weight in vlm.weights.weights}
    shapes = jax.eval_shape(vlm.init, jax.random.key(0))
    assert weights.count(shapes) == sum(p.numel() for p in model.parameters())
    mesh = sharding.make(config_lib.Mesh(fsdp=4, tensor=2))
    _, uncut = sharding.place(mesh, vlm.rules, shapes)
    assert not uncut


@pytest.mark.parametrize("family", PUBLISHED)
def test_flops_are_those_of_the_matrices(family):
    """Twice the numbers of the kernels per patch or cell, and attention; of 64 cells."""
    vlm = models.MODELS[family](PUBLISHED[family])
    shapes = jax.eval_shape(vlm.init, jax.random.key(0))
    kernels = {path: leaf for path, leaf in paths.flatten(shapes).items() if "kernel" in path}
    per_patch, per_cell = (
        weights.count([leaf for path, leaf in kernels.items() if path.startswith(parts)])
        for parts in ("vision/", ("projector/", "deep/"))
    )
    vision = PUBLISHED[family]["vision_config"]
    seen = {"qwen2_5_vl": 28 * 64 + 4 * 256, "qwen3_vl": 27 * 256}[family]
    attention = 256 * 4 * vision["hidden_size"] * seen
    layout = types.Layout.of(("only",))
    found = vlm.flops(layout, 0, 1, 1, 64) - vlm.flops(layout, 0, 1, 0, 64)
    np.testing.assert_allclose(found, 2 * (256 * per_patch + 64 * per_cell) + attention, rtol=1e-6)


def film(model, entries, shape, interval):
    """A video of so many entries."""
    vision = model.config.vision_config
    values = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = np.random.default_rng(2).normal(
        size=(entries, *shape, vision.spatial_merge_size**2, values)
    )
    return types.Picture(pixels.astype(np.float32), (1, 1), entries, 1, interval)


@pytest.mark.parametrize("variant", ["qwen2_5", "qwen3"])
def test_videos_equal_transformers(variant, tmp_path):
    """Positions and log-probabilities of a prompt with a picture and a video.

    Behind a video transformers 5.23 goes on with positions that the video has had, where generation
    (and the models' own code) goes on behind them: so the video comes last in the prompt, and torch
    is given the positions of the response.
    """
    model, _, vlm, params, (prompts, responses, shown) = both(variant, tmp_path)
    rng = np.random.default_rng(3)
    text = lambda n: rng.integers(1, 90, n).tolist()  # noqa: E731
    entries, shape, interval = 5, (2, 3), 0.75
    video = film(model, entries, shape, interval)
    frame = [checkpoints.IMAGE_TOKEN] * 6
    between = text(2) if variant == "qwen3" else []  # that tells the time
    prompt = [*prompts[0], *text(2), *(frame + between) * (entries - 1), *frame]
    response = responses[0][0]
    batch = batch_of(vlm, [prompt], [[response, response]], [[*shown[0], video]])
    h = jax.jit(vlm.hidden, static_argnums=2)(params, batch, LAYOUT)
    ours = autoregressive.dense(h, vlm.unembed(params), batch.responses)[0, 0]

    given = inputs(model, prompt + response, shown[0])
    ids, pictures = given["input_ids"], shown[0][0].pixels.shape[1] * shown[0][0].pixels.shape[2]
    kinds = given["mm_token_type_ids"]
    kinds[0, np.flatnonzero(kinds[0])[pictures:]] = 2
    ids[kinds == 2] = checkpoints.VIDEO_TOKEN
    grid = torch.tensor([(entries, 2 * shape[0], 2 * shape[1])])
    positions, deltas = model.model.get_rope_index(
        ids[:, : len(prompt)],
        kinds[:, : len(prompt)],
        image_grid_thw=given["image_grid_thw"],
        video_grid_thw=grid,
        second_per_grid_ts=torch.tensor([interval]),
    )
    np.testing.assert_array_equal(batch.media["positions"][0, 0, : len(prompt)], positions[:, 0].T)
    assert batch.media["behind"][0, 0] == -int(deltas)
    after = torch.arange(len(response)) + len(prompt) + int(deltas)
    positions = torch.cat([positions, after.expand(3, 1, -1)], dim=-1)
    flat = torch.tensor(video.pixels.reshape(-1, video.pixels.shape[-1]))
    logits = model(
        **given, pixel_values_videos=flat, video_grid_thw=grid, position_ids=positions
    ).logits
    wanted = logits[0, len(prompt) - 1 : -1].log_softmax(-1)[range(len(response)), response]
    np.testing.assert_allclose(ours, wanted.detach(), atol=1e-4)
