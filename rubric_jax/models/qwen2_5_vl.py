"""Qwen2.5-VL: a tower with windows, a merger of 2 x 2 patches, Qwen2 decoder.

See qwen.py for the parts, and Bai et al., arXiv:2502.13923.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import transformers

from rubric_jax.models import qwen
from rubric_jax.models import vlm as vlm_lib


def build(
    hf: Mapping[str, Any], *, dtype: str = "float32", remat: str = "none", attention: str = "auto"
) -> vlm_lib.VLM:
    """The model of a checkpoint's config.json. Raises ValueError on another architecture."""
    config = read_config(hf)
    names = ("visual.merger.ln_q", "visual.merger.mlp.0", "visual.merger.mlp.2")
    listed = (*qwen.tower_map(config.vision), *qwen.merger_map(config, names, "projector"))
    return qwen.build(config, listed, dtype=dtype, remat=remat, attention=attention)


def read_config(hf: Mapping[str, Any]) -> qwen.Config:
    """Parses config.json: the decoder's fields beside the tower's (as on the Hub), or nested."""
    known = qwen.parse(transformers.Qwen2_5_VLConfig, hf, "qwen2_5_vl")
    text, vision = known.text_config, known.vision_config
    sections = text.rope_parameters.get("mrope_section", [16, 24, 24])
    return qwen.Config(
        vision=qwen.vision_config(
            vision,
            window=vision.window_size // vision.spatial_merge_size // vision.patch_size,
            rms=True,
            gated=True,
            patch_bias=False,
            whole=tuple(vision.fullatt_block_indexes),
        ),
        decoder=qwen.text_config(
            text,
            tied=known.tie_word_embeddings,
            axes=tuple(np.repeat(np.arange(len(sections)) % 3, sections).tolist()),
            attention_bias=True,
            output_bias=False,
        ),
        image_token=known.image_token_id,
        pace=vision.tokens_per_second,
    )
