"""Writes a LLaVA of a size with random weights in bfloat16, in Hugging Face's layout.

  python experiments/benchmarks/make_checkpoint.py --size=1b --out=DIR

Weights and config.json alone, without tokenizer and processor: for measuring how fast they load.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import zlib
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # runs from a checkout as it is

import jax
import ml_dtypes
import numpy as np

from rubric_jax import models, paths
from rubric_jax.models import weights

_VISION = {  # CLIP ViT-L/14 at 336 pixels
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
SIZES = {  # of the decoder
    "1b": {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 20},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},  # LLaVA 1.5
}


def config(size: str) -> dict[str, Any]:
    """config.json of this size."""
    heads = SIZES[size]["hidden_size"] // 128
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": 32000,
        "dtype": "bfloat16",
        "vision_config": _VISION,
        "text_config": {
            "model_type": "llama",
            "vocab_size": 32064,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            **SIZES[size],
        },
    }


class _Random:
    """Entries of a normal distribution, drawn when they are asked for: [layer], or [...]."""

    def __init__(self, path: str, shape: tuple[int, ...]):
        self._seed, self._shape = zlib.crc32(path.encode()), shape

    def __getitem__(self, index) -> np.ndarray:
        whole = index is Ellipsis
        draw = np.random.default_rng((self._seed, 0 if whole else index))
        shape = self._shape if whole else self._shape[1:]
        return (0.02 * draw.standard_normal(shape, np.float32)).astype(ml_dtypes.bfloat16)


def write(directory: str | pathlib.Path, size: str) -> int:
    """Writes the checkpoint; returns the number of its parameters."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config(size), indent=2) + "\n")
    vlm = models.build("llava", directory)
    shapes = jax.eval_shape(vlm.init, jax.random.key(0))
    random = paths.map_named(lambda path, leaf: _Random(path, leaf.shape), shapes)
    weights.write(directory, random, vlm.weights)
    return weights.count(shapes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    print(f"{args.out}: {write(args.out, args.size):,} parameters")


if __name__ == "__main__":
    main()
