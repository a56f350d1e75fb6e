"""Model families. flax is used here and nowhere else; the rest of the project sees `vlm.VLM`."""

from __future__ import annotations

import json
import pathlib

from rubric_jax import config
from rubric_jax.models import llava, vlm

MODELS = {"llava": llava.build}


def build(family: str, directory, *, dtype: str = "float32", remat: str = "none") -> vlm.VLM:
    """The model of a checkpoint directory, without its weights."""
    config.bind(MODELS, family, {"dtype": dtype, "remat": remat}, what="model family")
    file = pathlib.Path(directory) / "config.json"
    if not file.exists():
        raise ValueError(f"No config.json in {directory}; is it a Hugging Face model directory?")
    return MODELS[family](json.loads(file.read_text()), dtype=dtype, remat=remat)
