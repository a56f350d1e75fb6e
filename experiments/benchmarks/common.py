"""What the benchmarks share: a random LLaVA at a size, timing side by side, a table, a file."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # runs from a checkout as it is

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from rubric_jax import types
from rubric_jax.models import llava
from rubric_jax.models import vlm as vlm_lib

_IMAGE_TOKEN = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """A model and what it reads."""

    width: int
    depth: int
    heads: int
    mlp: int
    vocab: int
    image: int  # pixels a side; patches of 14
    vision_width: int
    vision_depth: int
    dtype: str
    rows: int  # instances at a time
    prompt: int  # tokens, those of one image included


SIZES = {
    "cpu": Size(
        width=384, depth=4, heads=6, mlp=1024, vocab=8192, image=112, vision_width=192,
        vision_depth=4, dtype="float32", rows=2, prompt=512,
    ),
    "gpu": Size(  # LLaVA-1.5-7B
        width=4096, depth=32, heads=32, mlp=11008, vocab=32064, image=336, vision_width=1024,
        vision_depth=24, dtype="bfloat16", rows=8, prompt=1024,
    ),
}  # fmt: skip


def parser(text: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=text)
    made.add_argument("--scale", choices=SIZES, default="cpu")
    made.add_argument("--repeats", type=int, default=15)
    made.add_argument("--device", default="", help="its name in the results; default: as found")
    made.add_argument("--out", default="", help="a JSON file for the results")
    return made


def model(size: Size) -> tuple[vlm_lib.VLM, types.Params]:
    """A LLaVA of this size and random parameters in its dtype."""
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": size.vision_width,
        "intermediate_size": 4 * size.vision_width,
        "num_hidden_layers": size.vision_depth,
        "num_attention_heads": size.vision_width // 64,
        "image_size": size.image,
        "patch_size": 14,
    }
    text = {
        "model_type": "llama",
        "vocab_size": size.vocab,
        "hidden_size": size.width,
        "intermediate_size": size.mlp,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
    }
    hf = {
        "model_type": "llava",
        "image_token_index": _IMAGE_TOKEN,
        "vision_config": vision,
        "text_config": text,
    }
    vlm = llava.build(hf, dtype=size.dtype)

    @jax.jit
    def init(key):
        return jax.tree.map(lambda leaf: leaf.astype(size.dtype), vlm.init(key))

    return vlm, init(jax.random.key(0))


def prompts(
    vlm: vlm_lib.VLM, size: Size, *, rows: int, tails: np.ndarray | None = None
) -> types.Batch:
    """Rows of random text behind one image each, the same for every call; no responses yet.

    tails: int32 [rows, L], tokens behind the prompts, as part of them.
    """
    rng = np.random.default_rng(0)
    images = (size.image // 14) ** 2
    if size.prompt <= images:
        raise ValueError(f"{size.prompt} prompt tokens leave no text behind {images} of the image.")
    ids = rng.integers(2, size.vocab, (rows, 1, size.prompt)).astype(np.int32)
    ids[:, :, 1 : images + 1] = _IMAGE_TOKEN
    pixels = rng.normal(size=(rows, size.image, size.image, 3)).astype(np.float32)
    if tails is not None:
        ids = np.concatenate([ids, tails[:, None]], axis=2)
    media = vlm.media(ids, [list(pixels)], [[[b]] for b in range(rows)], rows)
    empty = np.zeros((rows, 1, 1), np.int32)
    return types.Batch(
        ids, np.full((rows, 1), ids.shape[2], np.int32), media, empty, empty + 1.0, None
    )


def on_device(batch: types.Batch) -> types.Batch:
    return jax.tree.map(jnp.asarray, batch)


def time_cases(cases: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every repeat, after compilation.

    The cases take turns, so that a busy machine slows all of them, each time in another order, for
    a large one leaves the caches cold for the next.
    """
    for case in cases.values():  # compile, and once more with everything in its place
        jax.block_until_ready(case())
        jax.block_until_ready(case())
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    order = np.random.default_rng(0)
    for _ in range(repeats):
        for name in order.permutation(list(cases)).tolist():
            started = time.perf_counter()
            jax.block_until_ready(cases[name]())
            seconds[name].append(time.perf_counter() - started)
    return seconds


def report(
    args: argparse.Namespace,
    sizes: Mapping[str, Any],
    seconds: Mapping[str, list[float]],
    ratios: Mapping[str, tuple[str, str]],
    facts: Mapping[str, float] | None = None,
) -> None:
    """Prints a table and writes args.out.

    ratios: what is claimed -> (case, case): the median over repeats of the quotient of a turn.
    """
    quotients = {
        name: statistics.median(a / b for a, b in zip(seconds[over], seconds[under]))
        for name, (over, under) in ratios.items()
    }
    device = args.device or _device()
    table = rich.table.Table(title=f"{device}, median of {args.repeats} repeats")
    for heading in ("case", "ms", "quartiles"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    summary = {}
    for name, values in seconds.items():
        low, middle, high = statistics.quantiles(values, n=4)
        summary[name] = {"median": middle, "quartiles": [low, high]}
        table.add_row(name, f"{1e3 * middle:.1f}", f"{1e3 * low:.1f} to {1e3 * high:.1f}")
    for name, value in {**quotients, **(facts or {})}.items():
        table.add_row(name, f"{value:.3g}", "", style="bold")
    rich.console.Console().print(table)
    if args.out:
        packages = ("jax", "jaxlib", "flax", "numpy")
        value = {
            "command": _command(),
            "device": device,
            "versions": {name: importlib.metadata.version(name) for name in packages},
            "sizes": dict(sizes),
            "repeats": args.repeats,
            "seconds": summary,
            "ratios": quotients,
            **(facts or {}),
        }
        path = pathlib.Path(args.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=1) + "\n")


def _device() -> str:
    first = jax.devices()[0]
    if first.platform == "cpu":
        return f"{os.cpu_count()} CPU cores"
    return f"{jax.device_count()} x {first.device_kind}"


def _command() -> str:
    """The command line, without where the checkout or the results lie."""
    words, skip = [], False
    for word in sys.argv[1:]:
        if not skip and word != "--out" and not word.startswith("--out="):
            words.append(f'"{word}"' if " " in word else word)
        skip = word == "--out"
    return " ".join(["python", f"experiments/benchmarks/{pathlib.Path(sys.argv[0]).name}", *words])
