"""What the benchmarks share: a random model at a size, timing side by side, a table, a file.

A result is one JSON line per setting:

  {"benchmark": "sampling", "setting": "sample, K = 8", "median_s": 1.08,
   "quartiles_s": [1.03, 1.15], "repeats": 15, "sizes": {...}, "command": "...", ...}
  {"benchmark": "sampling", "setting": "sample: K = 8 / K = 1", "ratio": 1.57, ...}
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import resource
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

from rubric_jax import models, types
from rubric_jax.models import vlm as vlm_lib

_IMAGE_TOKEN = 1
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


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
    family: str = "llava"


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
    made.add_argument(
        "--out", default="", help="a file for the results: .jsonl is added to, .json written anew"
    )
    return made


def vlm(size: Size, *, remat: str = "none", attention: str = "auto") -> vlm_lib.VLM:
    compute = {"dtype": size.dtype, "remat": remat, "attention": attention}
    return models.MODELS[size.family](hf_config(size), **compute)


def model(size: Size) -> tuple[vlm_lib.VLM, types.Params]:
    """A VLM of this size and random parameters in its dtype."""
    made = vlm(size)

    @jax.jit
    def init(key):
        return jax.tree.map(lambda leaf: leaf.astype(size.dtype), made.init(key))

    return made, init(jax.random.key(0))


def hf_config(size: Size) -> dict[str, Any]:
    """What config.json of a checkpoint of this size says."""
    vision = {
        "hidden_size": size.vision_width,
        "intermediate_size": 4 * size.vision_width,
        "num_hidden_layers": size.vision_depth,
        "num_attention_heads": size.vision_width // 64,
        "image_size": size.image,
        "patch_size": 14,
    }
    text = {
        "vocab_size": size.vocab,
        "hidden_size": size.width,
        "intermediate_size": size.mlp,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "head_dim": size.width // size.heads,
    }
    kinds = {
        "llava": ("clip_vision_model", "llama", {}),
        "paligemma": ("siglip_vision_model", "gemma", {"projection_dim": size.width}),
        "gemma3": (
            "siglip_vision_model",
            "gemma3_text",
            {"mm_tokens_per_image": (size.image // 14) ** 2},
        ),
    }
    tower, decoder, more = kinds[size.family]
    return {
        "model_type": size.family,
        "image_token_index": _IMAGE_TOKEN,
        "vision_config": {"model_type": tower, **vision},
        "text_config": {"model_type": decoder, **text},
        **more,
    }


def prompts(
    vlm: vlm_lib.VLM,
    size: Size,
    *,
    rows: int,
    tails: np.ndarray | None = None,
    groups: int = 1,
) -> types.Batch:
    """Rows of random text behind one image each, the same for every call; no responses yet.

    tails: int32 [rows, L], tokens behind the prompts, as part of them.
    groups: image groups of the batch; see types.Batch.media.
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
    shown = [types.Picture(image, (size.image, size.image)) for image in pixels]
    own = rows // groups
    tables = [shown[i : i + own] for i in range(0, rows, own)]
    media = vlm.media(ids, tables, [[[b % own]] for b in range(rows)], own)
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
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Prints a table and writes args.out.

    ratios: what is claimed -> (case, case): the median over repeats of the quotient of a turn.
    facts: further figures of the whole.
    more: further fields of a case's line.
    """
    pairs = {
        name: [a / b for a, b in zip(seconds[x], seconds[y])] for name, (x, y) in ratios.items()
    }
    table = rich.table.Table(title=f"{_device(args)}, median of {args.repeats} repeats")
    for heading in ("case", "ms", "quartiles"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    lines = []
    for name, values in seconds.items():
        low, middle, high = quartiles(values)
        own = (more or {}).get(name, {})
        lines.append({"setting": name, "median_s": middle, "quartiles_s": [low, high], **own})
        table.add_row(name, f"{1e3 * middle:.1f}", f"{1e3 * low:.1f} to {1e3 * high:.1f}")
    for name, values in pairs.items():
        low, middle, high = quartiles(values)
        lines.append({"setting": name, "ratio": middle, "quartiles": [low, high]})
        table.add_row(name, f"{middle:.3g}", f"{low:.3g} to {high:.3g}", style="bold")
    for name, value in (facts or {}).items():
        lines.append({"setting": name, "value": value})
        table.add_row(name, f"{value:.3g}", "", style="bold")
    rich.console.Console().print(table)
    write(args, sizes, lines)


def write(args: argparse.Namespace, sizes: Mapping[str, Any], lines: list[dict[str, Any]]) -> None:
    """Gives every line what it was measured under, and writes them to args.out."""
    if not args.out:
        return
    packages = (*_PACKAGES, *(("libtpu",) if importlib.util.find_spec("libtpu") else ()))
    under = {
        "repeats": args.repeats,
        "sizes": dict(sizes),
        "peak_process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "command": _command(),
        "device": _device(args),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "date": datetime.date.today().isoformat(),
    }
    benchmark = pathlib.Path(sys.argv[0]).stem
    text = "".join(json.dumps({"benchmark": benchmark, **line, **under}) + "\n" for line in lines)
    path = pathlib.Path(args.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if path.suffix == ".jsonl" else "w") as file:
        file.write(text)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; of one value, thrice that."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _device(args: argparse.Namespace) -> str:
    if args.device:
        return args.device
    first = jax.devices()[0]
    if first.platform == "cpu":
        return f"{len(os.sched_getaffinity(0))} CPU cores"
    return f"{jax.device_count()} x {first.device_kind}"


def _command() -> str:
    """The command line, without where the checkout or the results lie."""
    words, skip = [], False
    for word in sys.argv[1:]:
        if not skip and word != "--out" and not word.startswith("--out="):
            words.append(f'"{word}"' if " " in word else word)
        skip = word == "--out"
    return " ".join(["python", f"experiments/benchmarks/{pathlib.Path(sys.argv[0]).name}", *words])
