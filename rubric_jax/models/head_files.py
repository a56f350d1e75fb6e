"""Heads on disk: a folder in a checkpoint, where transformers and servers do not look.

  DIR/heads/config.json             {"reward": {"head": "last", "outputs": 1, "width": 0}}
  DIR/heads/weights.safetensors     reward/kernel [D, H], reward/bias [H]

A head that a checkpoint has is kept with it; one that it lacks starts from the run's seed.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes  # noqa: F401  (teaches NumPy, and so safetensors, bfloat16)
import numpy as np
import safetensors
import safetensors.numpy

from rubric_jax import paths, types
from rubric_jax.models import heads as heads_lib
from rubric_jax.models import vlm as vlm_lib

Params = types.Params


def of_checkpoint(directory: str | pathlib.Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    """A config's heads and those that the checkpoint has besides, as `heads.complete` has them.

    ValueError if one of them is another there.
    """
    wanted, there = heads_lib.complete(spec), saved(directory)
    for name in wanted.keys() & there.keys():
        if wanted[name] != there[name]:
            raise ValueError(
                f"config.model.heads.{name} is {wanted[name]}, but the checkpoint {directory} has "
                f"{there[name]}; use that, or give the head another name."
            )
    return there | wanted


def saved(directory: str | pathlib.Path) -> dict[str, Any]:
    """The heads that a checkpoint has, as `heads.complete` writes them; {} if none."""
    file = pathlib.Path(directory) / heads_lib.FOLDER / "config.json"
    if not file.exists():
        return {}
    try:
        return heads_lib.complete(json.loads(file.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, ValueError) as error:
        raise ValueError(f"{file} does not describe heads: {error}") from error


def tensors(directory: str | pathlib.Path) -> dict[str, np.ndarray]:
    """{'reward/kernel': array} of the heads that a checkpoint has; {} if none."""
    if not saved(directory):
        return {}
    try:
        return safetensors.numpy.load_file(_file(directory))
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"{_file(directory)} cannot be read ({error}); fetch or copy the checkpoint again."
        ) from error


def fingerprint(directory: str | pathlib.Path) -> str:
    """Hex digest of the heads that a checkpoint has; "" if none."""
    if not saved(directory):
        return ""
    parts = (_file(directory).with_name("config.json"), _file(directory))
    return hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()


def load(directory, vlm: vlm_lib.VLM, shapes, *, seed: int, shardings) -> Params:
    """Parameters of a model's heads: from a checkpoint, or new where it has none of that name.

    Args:
      directory: of the checkpoint.
      shapes, shardings: trees of the heads' part: ShapeDtypeStructs, and NamedShardings.
      seed: of new heads.

    Raises ValueError naming a tensor that is missing or of another shape.
    """
    there, stored = saved(directory), tensors(directory)
    width = jax.eval_shape(vlm.unembed, jax.eval_shape(vlm.init, jax.random.key(0))).shape[0]

    def read(path: str, leaf, place):
        array = stored.get(path)
        if array is None or array.shape != leaf.shape:
            found = "missing" if array is None else f"{list(array.shape)}"
            raise ValueError(
                f"{_file(directory)}: {path} is {found}, expected {list(leaf.shape)}; is the "
                "checkpoint of another width?"
            )
        return jax.make_array_from_callback(
            leaf.shape, place, lambda index: np.asarray(array[index], leaf.dtype)
        )

    def new(key):
        made = heads_lib.init(tuple((n, h) for n, h in vlm.heads if n not in there), key, width)
        return jax.tree.map(lambda x, leaf: x.astype(leaf.dtype), made, lacking)

    lacking = {name: part for name, part in shapes.items() if name not in there}
    places = {name: part for name, part in shardings.items() if name not in there}
    params = dict(jax.jit(new, out_shardings=places)(jax.random.key(seed))) if lacking else {}
    for name in shapes.keys() & there.keys():
        at = paths.flatten(shardings[name])
        params[name] = paths.map_named(
            lambda path, leaf, name=name, at=at: read(f"{name}/{path}", leaf, at[path]),
            shapes[name],
        )
    return params


def write(directory: str | pathlib.Path, params: Params, spec: Mapping[str, Any]) -> int:
    """Writes heads beside a checkpoint's weights; returns the number of tensors.

    Args:
      params: the heads' part of the parameters, on the host or on this process's devices.
      spec: what they are, as `heads.complete` has them.
    """
    if not spec:
        return 0
    folder = _file(directory).parent
    folder.mkdir(parents=True, exist_ok=True)
    flat = {path: np.asarray(leaf, order="C") for path, leaf in paths.flatten(params).items()}
    safetensors.numpy.save_file(flat, _file(directory))
    (folder / "config.json").write_text(json.dumps(dict(spec), indent=2) + "\n", encoding="utf-8")
    return len(flat)


def _file(directory: str | pathlib.Path) -> pathlib.Path:
    return pathlib.Path(directory) / heads_lib.FOLDER / "weights.safetensors"
