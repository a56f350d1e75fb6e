"""Qwen3-VL (dense): a tower that sees whole pictures, DeepStack features, Qwen3 decoder.

See qwen.py for the parts; Qwen Team, arXiv:2511.21631; DeepStack: Meng et al., arXiv:2406.04334.
"""

from __future__ import annotations

import math
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
    listed = [*qwen.tower_map(config.vision), *_merger(config, "visual.merger", "projector")]
    for i in range(len(config.vision.deep)):
        listed += _merger(config, f"visual.deepstack_merger_list.{i}", "deep", i)
    return qwen.build(config, tuple(listed), dtype=dtype, remat=remat, attention=attention)


def read_config(hf: Mapping[str, Any]) -> qwen.Config:
    """Parses config.json."""
    known = qwen.parse(transformers.Qwen3VLConfig, hf, "qwen3_vl")
    text, vision = known.text_config, known.vision_config
    deep, side = tuple(vision.deepstack_visual_indexes), math.isqrt(vision.num_position_embeddings)
    if side**2 != vision.num_position_embeddings:
        raise ValueError(
            f"config.json has num_position_embeddings {vision.num_position_embeddings}; they stand "
            "in a square table, so it must be a square number."
        )
    ascending = all(a < b for a, b in zip((-1, *deep), (*deep, vision.depth), strict=True))
    if not ascending or len(deep) > text.num_hidden_layers:
        raise ValueError(
            f"config.json has deepstack_visual_indexes {list(deep)}; they must be ascending layers "
            f"of {vision.depth}, and no more than the decoder's {text.num_hidden_layers} layers."
        )
    return qwen.Config(
        vision=qwen.vision_config(vision, side=side, deep=deep),
        decoder=qwen.text_config(
            text,
            tied=known.tie_word_embeddings,
            axes=_axes(text.head_dim // 2, text.rope_parameters.get("mrope_section", (24, 20, 20))),
            query_key_norm=True,
        ),
        image_token=known.image_token_id,
    )


def _axes(count: int, sections) -> tuple[int, ...]:
    """Time, row and column in turn, as often as the sections say; time for the rest."""
    axes = np.zeros(count, int)
    for axis in (1, 2):
        axes[axis : 3 * sections[axis] : 3] = axis
    return tuple(axes.tolist())


def _merger(config: qwen.Config, there: str, here: str, layer: int | None = None):
    names = (f"{there}.norm", f"{there}.linear_fc1", f"{there}.linear_fc2")
    return qwen.merger_map(config, names, here, layer)
