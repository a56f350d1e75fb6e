"""Toy models and random batches, for tests that need no files."""

import jax
import jax.numpy as jnp
import numpy as np

from rubric_jax import paths, types
from rubric_jax.models import llava

IMAGE_TOKEN = 60
HF = {
    "model_type": "llava",
    "image_token_index": IMAGE_TOKEN,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "tie_word_embeddings": False,
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    },
    "text_config": {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


def model(**kwargs):
    """A toy LLaVA and random parameters, biases and norm scales too. Compiles nothing."""
    vlm = llava.build(HF, **kwargs)
    rng = np.random.default_rng(0)

    def noise(path, leaf):
        around = 1.0 if path.endswith("scale") else 0.0
        return jnp.asarray(around + 0.15 * rng.normal(size=leaf.shape), jnp.float32)

    return vlm, paths.map_named(noise, jax.eval_shape(vlm.init, jax.random.key(0)))


def pictures(pixels):
    """[n, H, W, 3] as a family without tiles reads them."""
    return [types.Picture(image.astype(np.float32), image.shape[1::-1]) for image in pixels]


def batch(vlm, layout, *, rows=4, prompt=12, response=5, axes=2, groups=1, seed=0, ref=True):
    """Random rows with 0, 1 or 2 images, ragged lengths, and one image shared by all contexts."""
    rng = np.random.default_rng(seed)
    contexts, branches = len(layout.contexts), len(layout.branches)
    prompts = np.zeros((rows, contexts, prompt), np.int32)
    lengths = np.zeros((rows, contexts), np.int32)
    per_group = rows // groups
    tables, slots = [[] for _ in range(groups)], []
    for b in range(rows):
        table = tables[b // per_group]
        images = [rng.normal(size=(16, 16, 3)).astype(np.float32) for _ in range(contexts)]
        row = []
        for m in range(contexts):
            count = (b + m) % 3
            placeholders = [IMAGE_TOKEN] * (4 * count)
            text = rng.integers(1, 59, rng.integers(2, prompt - 8 + 1)).tolist()
            ids = text[:1] + placeholders + text[1:]
            prompts[b, m, : len(ids)] = ids
            lengths[b, m] = len(ids)
            if count:
                table.append(types.Picture(images[m], (16, 16)))
            row.append([len(table) - 1] * count)
        slots.append(row)
    media = vlm.media(prompts, tables, slots, max(map(len, tables)))
    responses = rng.integers(1, 59, (rows, branches, response)).astype(np.int32)
    ends = rng.integers(1, response + 1, (rows, branches, 1))
    mask = (np.arange(response) < ends).astype(np.float32)
    labels = types.Labels(
        rng.uniform(size=(rows, branches, axes)).astype(np.float32),
        rng.uniform(0.5, 1.5, rows).astype(np.float32),
        np.zeros(rows, np.float32),
        rng.integers(0, axes, rows).astype(np.int32),
    )
    ref_logps = -rng.uniform(1, 6, mask.shape).astype(np.float32) if ref else None
    return types.Batch(prompts, lengths, media, responses, mask, labels, ref_logps)
