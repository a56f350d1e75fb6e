"""Weight maps of the parts that families share; a family's own map puts them together."""

from __future__ import annotations

from collections.abc import Iterator

from rubric_jax.models import decoder as decoder_lib
from rubric_jax.models import vit as vit_lib
from rubric_jax.models.weights import Weight

# Norms of a decoder layer: theirs and ours. Gemma's second generation put norms behind, too.
NORMS = (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "mlp_norm"))
SANDWICH = (
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "attn_post_norm"),
    ("pre_feedforward_layernorm", "mlp_norm"),
    ("post_feedforward_layernorm", "mlp_post_norm"),
)


def linear(
    name: str, outputs: int, inputs: int, path: str, bias: bool, layer: int | None = None
) -> Iterator[Weight]:
    """torch stores [outputs, inputs]; kernels here are [inputs, outputs]."""
    yield Weight(f"{name}.weight", (outputs, inputs), f"{path}/kernel", (1, 0), layer)
    if bias:
        yield Weight(f"{name}.bias", (outputs,), f"{path}/bias", (0,), layer)


def norm(
    name: str, width: int, path: str, bias: bool, layer: int | None = None
) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", (width,), f"{path}/scale", (0,), layer)
    if bias:
        yield Weight(f"{name}.bias", (width,), f"{path}/bias", (0,), layer)


def vit(c: vit_lib.Config, tower: str, here: str) -> Iterator[Weight]:
    """A CLIP or SigLIP tower under the checkpoint prefix `tower`, as the parameters `here`."""
    width = c.width
    shape = (width, c.channels, c.patch, c.patch)
    embed = f"{tower}.embeddings"
    if c.class_token:
        yield Weight(f"{embed}.class_embedding", (width,), f"{here}/class_token", (0,))
    name = f"{embed}.patch_embedding"
    yield Weight(f"{name}.weight", shape, f"{here}/patch/kernel", (2, 3, 1, 0))
    if c.patch_bias:
        yield Weight(f"{name}.bias", (width,), f"{here}/patch/bias", (0,))
    name = f"{embed}.position_embedding.weight"
    yield Weight(name, (c.tokens, width), f"{here}/position", (0, 1))
    if c.pre_norm:
        yield from norm(f"{tower}.pre_layrnorm", width, f"{here}/pre_norm", True)
    yield from norm(f"{tower}.post_layernorm", width, f"{here}/post_norm", True)
    for i in range(c.depth):
        layer, at = f"{tower}.encoder.layers.{i}", f"{here}/layers"
        for ours, theirs in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj")):
            name = f"{layer}.self_attn.{theirs}"
            yield from linear(name, width, width, f"{at}/attn/{ours}", True, i)
        yield from linear(f"{layer}.mlp.fc1", c.mlp, width, f"{at}/up", True, i)
        yield from linear(f"{layer}.mlp.fc2", width, c.mlp, f"{at}/down", True, i)
        yield from norm(f"{layer}.layer_norm1", width, f"{at}/attn_norm", True, i)
        yield from norm(f"{layer}.layer_norm2", width, f"{at}/mlp_norm", True, i)


def decoder(c: decoder_lib.Config, there: str, here: str) -> Iterator[Weight]:
    """A Llama or Gemma decoder with its head under the prefix `there`, as the parameters `here`."""
    model = f"{there}.model"
    name, shape = f"{model}.embed_tokens.weight", (c.vocab, c.width)
    yield Weight(name, shape, f"{here}/embedding", (0, 1))
    if not c.tied:
        name = f"{there}.lm_head.weight"
        yield Weight(name, shape, f"{here}/unembedding", (1, 0))
    yield from norm(f"{model}.norm", c.width, f"{here}/norm", False)
    queries, keys = c.heads * c.head_size, c.key_heads * c.head_size
    for i in range(c.depth):
        layer, at = f"{model}.layers.{i}", f"{here}/layers"
        for ours, outputs in (("q", queries), ("k", keys), ("v", keys)):
            name, path = f"{layer}.self_attn.{ours}_proj", f"{at}/attn/{ours}"
            yield from linear(name, outputs, c.width, path, c.attention_bias, i)
        name = f"{layer}.self_attn.o_proj"
        bias = c.attention_bias if c.output_bias is None else c.output_bias
        yield from linear(name, c.width, queries, f"{at}/attn/o", bias, i)
        for ours in ("gate", "up"):
            name = f"{layer}.mlp.{ours}_proj"
            yield from linear(name, c.mlp, c.width, f"{at}/{ours}", c.mlp_bias, i)
        yield from linear(f"{layer}.mlp.down_proj", c.width, c.mlp, f"{at}/down", c.mlp_bias, i)
        if c.query_key_norm:
            for ours in ("q_norm", "k_norm"):
                name, path = f"{layer}.self_attn.{ours}", f"{at}/attn/{ours}"
                yield from norm(name, c.head_size, path, False, i)
        for theirs, ours in SANDWICH if c.sandwich else NORMS:
            yield from norm(f"{layer}.{theirs}", c.width, f"{at}/{ours}", False, i)
