"""LLaVA against transformers in float32, on small random checkpoints."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

from rubric_jax import models, types
from rubric_jax.likelihoods import autoregressive
from rubric_jax.models import weights
from tests import toys
from tests.parity import checkpoints

VARIANTS = {
    "plain": {},
    "tied": {"tied": True, "key_heads": 1},
    "ungrouped_full": {"key_heads": 4, "strategy": "full", "feature_layer": -1},
    "two_feature_layers": {"feature_layer": [-2, 1], "attention_bias": True},
    "llama3_rope": {
        "rope": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        "projector_bias": False,
    },
}
LAYOUT = types.Layout.of(("chosen", "rejected"))


def rows(tokens_per_image: int):
    """Prompts with one, two and no images, and responses of different lengths."""
    rng = np.random.default_rng(0)
    text = lambda n: rng.integers(1, 90, n).tolist()  # noqa: E731
    image = [checkpoints.IMAGE_TOKEN] * tokens_per_image
    prompts = [
        text(3) + image + text(4),
        image + text(2) + image + text(1),
        text(5),
    ]
    responses = [[text(6), text(3)], [text(1), text(4)], [text(5), text(5)]]
    return prompts, responses, [1, 2, 0]


def batch_of(vlm, prompts, responses, counts, pixels):
    """Of pixels [n, H, W, 3], or of a list of pictures."""
    pictures = toys.pictures(pixels) if isinstance(pixels, np.ndarray) else pixels
    size = max(map(len, prompts)) + 3  # padding beyond the longest
    ids = np.zeros((len(prompts), 1, size), np.int32)
    length = max(len(r) for pair in responses for r in pair)
    answers = np.zeros((len(prompts), 2, length), np.int32)
    mask = np.zeros(answers.shape, np.float32)
    for b, prompt in enumerate(prompts):
        ids[b, 0, : len(prompt)] = prompt
        for n, response in enumerate(responses[b]):
            answers[b, n, : len(response)] = response
            mask[b, n, : len(response)] = 1
    ends = np.cumsum(counts)
    slots = [[list(range(end - count, end))] for end, count in zip(ends, counts)]
    media = vlm.media(ids, [pictures], slots, sum(picture.entries for picture in pictures))
    lengths = np.array([[len(p)] for p in prompts], np.int32)
    labels = types.Labels(*(np.zeros(()) for _ in range(4)))
    return types.Batch(ids, lengths, media, answers, mask, labels)


def torch_logps(model, prompts, responses, counts, pixels, branch):
    """Sequence by sequence, unpadded: the plainest route. A list of [T_b]."""
    first, out = 0, []
    for prompt, pair, count in zip(prompts, responses, counts):
        ids = torch.tensor([prompt + pair[branch]])
        images = torch.tensor(pixels[first : first + count]).permute(0, 3, 1, 2)
        first += count
        kwargs = {"pixel_values": images} if count else {}
        logits = model(input_ids=ids, **kwargs).logits[0, :-1].log_softmax(-1)
        logps = logits.gather(-1, ids[0, 1:, None])[:, 0]
        out.append(logps[len(prompt) - 1 :])
    return out


@pytest.fixture(params=VARIANTS)
def pair(request, tmp_path):
    model = checkpoints.llava(tmp_path, seed=len(request.param), **VARIANTS[request.param])
    return model, tmp_path


def loaded(directory):
    vlm = models.build("llava", directory)
    shapes = jax.eval_shape(vlm.init, jax.random.key(0))
    return vlm, weights.load(directory, vlm.weights, shapes, dtype=jnp.float32)


def example(vlm, model):
    strategy = model.config.vision_feature_select_strategy
    prompts, responses, counts = rows(4 + (strategy == "full"))
    pixels = np.random.default_rng(1).normal(size=(3, 16, 16, 3)).astype(np.float32)
    return prompts, responses, counts, pixels, batch_of(vlm, prompts, responses, counts, pixels)


def test_logps_and_gradients_equal_transformers(pair):
    model, directory = pair
    vlm, params = loaded(directory)
    prompts, responses, counts, pixels, batch = example(vlm, model)

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
        theirs = torch_logps(model, prompts, responses, counts, pixels, n)
        for b, row in enumerate(theirs):
            np.testing.assert_allclose(ours[b, n, : len(row)], row.detach(), atol=1e-4)
            total = total + signs[n] * row.sum()
    total.backward()

    wanted = torch_grads(model, vlm)
    found = dict(weights.tensors_of(grads, vlm.weights, {}))
    assert set(found) >= set(wanted)
    # CLIP's key biases have no gradient but rounding, so "relative" needs a floor.
    floor = 1e-4 * max(np.abs(want).max() for want in wanted.values())
    for name, want in wanted.items():
        scale = max(np.abs(want).max(), floor)
        np.testing.assert_allclose(found[name] / scale, want / scale, atol=1e-3, err_msg=name)


def torch_grads(model, vlm):
    named = {}
    for name, tensor in model.named_parameters():
        grad = np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
        named[vlm.weights.canonical(name)] = grad
    return named


def test_import_then_export_is_bit_equal(pair, tmp_path_factory):
    _, directory = pair
    vlm, params = loaded(directory)
    out = tmp_path_factory.mktemp("export")
    weights.write(out, params, vlm.weights, source=directory, shard_bytes=20_000)
    assert json.loads((out / weights.INDEX).read_text())["weight_map"]  # several files
    before = safetensors.numpy.load_file(directory / "model.safetensors")
    after = {}
    for file in out.glob("*.safetensors"):
        after |= safetensors.numpy.load_file(file)
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.dtype == after[name].dtype
        np.testing.assert_array_equal(array, after[name], err_msg=name)


def test_transformers_loads_the_export_without_a_complaint(pair, tmp_path_factory):
    model, directory = pair
    vlm, params = loaded(directory)
    out = tmp_path_factory.mktemp("export")
    weights.write(out, params, vlm.weights, source=directory)
    again, info = type(model).from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=0)
