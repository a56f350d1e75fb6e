"""Model families. flax is used here and nowhere else; the rest of the project sees `vlm.VLM`."""

from __future__ import annotations

import json
import pathlib

import huggingface_hub

from rubric_jax import config
from rubric_jax.models import (
    attention,
    gemma3,
    idefics3,
    internvl,
    llava,
    llava_next,
    paligemma,
    qwen2_5_vl,
    qwen3_vl,
    vlm,
)

ROUTES = attention.ROUTES
MODELS = {
    "llava": llava.build,
    "llava_next": llava_next.build,
    "paligemma": paligemma.build,
    "gemma3": gemma3.build,
    "internvl": internvl.build,
    "idefics3": idefics3.build,
    "qwen2_5_vl": qwen2_5_vl.build,
    "qwen3_vl": qwen3_vl.build,
}


def build(
    family: str,
    directory,
    *,
    dtype: str = "float32",
    remat: str = "none",
    attention: str = "auto",
) -> vlm.VLM:
    """The model of a checkpoint directory, without its weights; see config.Model."""
    compute = {"dtype": dtype, "remat": remat, "attention": attention}
    config.bind(MODELS, family, compute, what="model family")
    file = pathlib.Path(directory) / "config.json"
    if not file.exists():
        raise ValueError(f"No config.json in {directory}; is it a Hugging Face model directory?")
    try:
        values = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON ({error}); fetch or copy it again.") from error
    return MODELS[family](values, **compute)


def directory(checkpoint: str) -> pathlib.Path:
    """The directory of a checkpoint, given as one or as a hub name (which is fetched).

    ValueError if it is neither. Pickled weights are never fetched.
    """
    if not checkpoint:
        raise ValueError(
            "config.model.checkpoint is empty; give a Hugging Face directory (or a hub name)."
        )
    path = pathlib.Path(checkpoint).expanduser()
    if path.is_dir():
        return path
    if checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") != 1:
        raise ValueError(f"config.model.checkpoint is {checkpoint!r}; no such directory exists.")
    wanted = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model"]
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(checkpoint, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"config.model.checkpoint is {checkpoint!r}: neither a directory nor a hub name that "
            f"can be reached ({error}). Download it and give its directory."
        ) from error
