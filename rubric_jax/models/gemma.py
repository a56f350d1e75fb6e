"""What PaliGemma and Gemma 3 share: decoders of the three Gemma generations.

            norms                          attention                                    logits
  gemma     before attention and MLP       all layers see everything                    as they are
  gemma2    also behind them               every other layer has a window; capped       capped
  gemma3    also on queries and keys       five of six layers have a window and a       as they are
                                           rotary base of their own

Gemma Team, arXiv:2403.08295, arXiv:2408.00118 and arXiv:2503.19786.
"""

from __future__ import annotations

from rubric_jax.models import decoder, parsing


def text_config(text, *, tied: bool) -> decoder.Config:
    """The decoder of a text_config of any of the three generations."""
    kind, size = text.model_type, text.head_dim
    first = kind == "gemma"
    activation = parsing.activation(text.hidden_act if first else text.hidden_activation)
    rope = text.rope_parameters
    everywhere = rope["full_attention"] if kind == "gemma3_text" else rope
    local = rope["sliding_attention"] if kind == "gemma3_text" else None
    windows: tuple[int, ...] = ()
    if not first and text.sliding_window is not None:
        sliding = [layer == "sliding_attention" for layer in text.layer_types]
        windows = tuple(text.sliding_window if there else 0 for there in sliding)
    return decoder.Config(
        vocab=text.vocab_size,
        width=text.hidden_size,
        depth=text.num_hidden_layers,
        heads=text.num_attention_heads,
        key_heads=text.num_key_value_heads,
        head_size=size,
        mlp=text.intermediate_size,
        activation=activation,
        norm_eps=text.rms_norm_eps,
        frequencies=decoder.frequencies(size, everywhere["rope_theta"], everywhere),
        local_frequencies=decoder.frequencies(size, local["rope_theta"], local) if local else (),
        attention_bias=text.attention_bias,
        mlp_bias=False,
        tied=tied,
        embed_scale=text.hidden_size**0.5,
        norm_offset=1.0,
        sandwich=not first,
        query_key_norm=kind == "gemma3_text",
        query_scale=0.0 if first else text.query_pre_attn_scalar**-0.5,
        attention_cap=(text.attn_logit_softcapping or 0.0) if kind == "gemma2" else 0.0,
        windows=windows if any(windows) else (),
    )
