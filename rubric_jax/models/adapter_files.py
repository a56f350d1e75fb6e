"""Adapters on disk, in PEFT's format, and merged into a checkpoint.

adapter_config.json        r, lora_alpha, use_rslora, use_dora, target_modules, ...
adapter_model.safetensors  tensor                                              leaf
  base_model.model.<module>.lora_A.weight          [r, inputs]    lora_a, transposed
  base_model.model.<module>.lora_B.weight          [outputs, r]   lora_b, transposed
  base_model.model.<module>.lora_magnitude_vector  [outputs]      lora_magnitude (DoRA)

<module> is the name of a linear layer in the torch model: transformers' own, which differs between
its versions. Any spelling that the family's weight map knows is read; the one of transformers 5 is
written.
"""

from __future__ import annotations

import hashlib
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from absl import logging

from rubric_jax import paths, types
from rubric_jax.models import adapters, combining, lora, weights
from rubric_jax.models import vlm as vlm_lib

Params = types.Params

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_NAMES = {  # ends of PEFT's tensor names; the magnitude has had two
    ".lora_A.weight": "lora_a",
    ".lora_B.weight": "lora_b",
    ".lora_magnitude_vector": "lora_magnitude",
    ".lora_magnitude_vector.weight": "lora_magnitude",
}
# What PEFT can do beyond this module, and how "not used" is written there.
_UNUSED: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "modules_to_save": (None, []),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (False,),
    "use_bdlora": (None, False),
    "velora_config": (None, {}),
    "monteclora_config": (None, {}),
    "kasa_config": (None, {}),
    # Others (pissa, olora, corda, loftq, ...) change the base's weights as well.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}


def open_adapter(values: Mapping[str, Any], vlm: vlm_lib.VLM) -> adapters.Adapter | None:
    """The adapter that config.model.adapter describes, None for {}; reads no tensor.

    Raises:
      ValueError: a wrong field, a pattern that selects nothing, a directory that cannot be started
        from, or fields that differ from those of that directory.
    """
    if not values:
        return None
    values = adapters.check(values)
    known = adapters.sites(vlm.weights, jax.eval_shape(vlm.init, jax.random.key(0)))
    start = values.get("start")
    if not start:
        return adapters.build(values, known)
    found = read_config(start)
    for name, value in found.items():
        if values.get(name, value) != value:
            raise ValueError(
                f"config.model.adapter.{name} is {values[name]!r}, but {start} was trained with "
                f"{value!r}; leave the field out, or start from another directory."
            )
    here = tuple(known[path] for path in sorted(_by_site(start, vlm.weights, known)))
    if "targets" in values and set(adapters.choose(values["targets"], known)) != set(here):
        raise ValueError(
            f"config.model.adapter.targets selects other kernels than {start} holds: "
            f"{', '.join(site.path for site in here)}. Leave the field out."
        )
    return adapters.Adapter(sites=here, start=str(start), **found)


def anew(values: Mapping[str, Any], vlm: vlm_lib.VLM) -> dict[str, Any]:
    """config.model.adapter for what follows once an adapter was merged: the same, begun afresh."""
    adapter = open_adapter(values, vlm)
    if adapter is None or not adapter.start:
        return dict(values)
    kernels = tuple((re.escape(f"{site.path}/kernel"), True) for site in adapter.sites)
    return {**read_config(adapter.start), "targets": (*kernels, (r".*", False))}


def read_config(directory: str | pathlib.Path) -> dict[str, Any]:
    """Fields of config.model.adapter from adapter_config.json; ValueError for what we do not do."""
    file = pathlib.Path(directory).expanduser() / CONFIG
    if not file.exists():
        raise ValueError(f"No {file}; config.model.adapter.start must be a directory by PEFT.")
    try:
        found = json.loads(file.read_text())
        kind = found["peft_type"]
        fields = {
            "rank": int(found["r"]) if kind == "LORA" else 0,
            "alpha": float(found["lora_alpha"]) if kind == "LORA" else 0.0,
            "rank_stabilised": bool(found.get("use_rslora", False)),
            "dora": bool(found.get("use_dora", False)),
        }
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is no adapter configuration ({error!r}); save it again."
        ) from error
    if kind != "LORA":
        raise ValueError(f"{file}: peft_type is {kind!r}; only 'LORA' is read (and DoRA, rsLoRA).")
    for name, unused in _UNUSED.items():
        if name in found and found[name] not in unused:
            raise ValueError(
                f"{file}: {name} is {found[name]!r}, which has no counterpart here. Merge the "
                "adapter with peft's merge_and_unload, and start from the merged checkpoint."
            )
    if found.get("lora_dropout"):
        dropout = found["lora_dropout"]
        logging.warning(
            "%s: lora_dropout %s is not applied here; training has none.", file, dropout
        )
    return fields


def read(adapter: adapters.Adapter, spec: weights.Map) -> Params:
    """The leaves of adapter.start: nested dicts of float32 NumPy arrays.

    Raises:
      ValueError: a tensor that is missing or of another shape, with its name.
    """
    found = _by_site(adapter.start, spec, {site.path: site for site in adapter.sites})
    flat: dict[str, np.ndarray] = {}
    file = _tensor_file(adapter.start)
    with safetensors.safe_open(file, "np") as reader:
        for site in adapter.sites:
            stacked = {
                leaf: [
                    _from_torch(
                        leaf, _tensor(reader, file, found[site.path], leaf, i), site, adapter
                    )
                    for i in range(len(site.modules))
                ]
                for leaf in ("lora_a", "lora_b", *(("lora_magnitude",) if adapter.dora else ()))
            }
            arrays = {k: np.stack(v) if site.stack else v[0] for k, v in stacked.items()}
            scale = np.full(site.stack, adapter.scale, np.float32)
            leaves = lora.Leaves(lora_scale=scale, **arrays)
            flat |= adapters.leaves_at(site, leaves)
    return adapters.nest(flat)


def read_named(
    directories: Mapping[str, str | pathlib.Path], vlm: vlm_lib.VLM
) -> dict[str, combining.Named]:
    """{name: adapter and leaves} of directories in PEFT's format, for one base.

    vlm: the model without an adapter. `adapters.swap(params, named["a"].leaves)` chooses one.
    """
    found = {}
    for name, directory in directories.items():
        adapter = open_adapter({"start": str(directory)}, vlm)
        found[name] = combining.Named(adapter, read(adapter, vlm.weights))
    return found


def write(
    directory: str | pathlib.Path,
    adapter: adapters.Adapter,
    leaves: Params,
    spec: weights.Map,
    *,
    base: str,
) -> int:
    """Writes an adapter as peft's `PeftModel.from_pretrained` reads it; the number of tensors.

    Args:
      leaves: the adapter's (`adapters.extract`), on the host or on this process's devices.
      base: name or directory of the checkpoint it belongs to, for the record.
    """
    directory, flat = pathlib.Path(directory), paths.flatten(leaves)
    tensors, targets = {}, []
    ends = {leaf: end for end, leaf in reversed(_NAMES.items())}
    for site in adapter.sites:
        for i, module in enumerate(site.modules):
            name = spec.module(module)
            targets.append(name)
            for leaf in ("lora_a", "lora_b", "lora_magnitude"):
                path = f"{site.path}/{leaf}"
                if path in flat:
                    array = np.asarray(flat[path][i] if site.stack else flat[path], np.float32)
                    tensors[_PREFIX + name + ends[leaf]] = _to_torch(leaf, array, adapter.rank)
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": int(adapter.alpha) if adapter.alpha.is_integer() else adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": adapter.rank_stabilised,
        "use_dora": adapter.dora,
        # In full: 'q_proj' alone would adapt the vision tower as well.
        "target_modules": sorted(targets),
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    directory.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(tensors, directory / TENSORS, {"format": "pt"})
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return len(tensors)


def merged(
    directory: str | pathlib.Path, adapter: adapters.Adapter, leaves: Params, spec: weights.Map
) -> Params:
    """A checkpoint under an adapter, for `weights.write`: each tensor is read when it is asked for.

    Args:
      directory: the base's. leaves: the adapter's, on the host.
    """
    found = weights.tensors(directory, spec)
    weights.check(found, spec, directory)
    own = {site.path: site for site in adapter.sites}
    flat: dict[str, _Merged] = {}
    for weight in spec.weights:
        site = own.get(weight.path.removesuffix("/kernel"))
        if weight.path not in flat:
            layer = leaves
            for part in site.path.split("/") if site else ():
                layer = layer[part]
            flat[weight.path] = _Merged(site, adapters.leaves_of(layer) if site else None)
        flat[weight.path].tensors[weight.layer] = found[weight.name], weight
    return adapters.nest(flat)


def fingerprint(directory: str | pathlib.Path) -> str:
    """Hex digest of an adapter: the bytes of its two files."""
    file = pathlib.Path(directory).expanduser() / CONFIG
    parts = [
        hashlib.sha256(part.read_bytes()).hexdigest() for part in (file, _tensor_file(directory))
    ]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


class _Merged:
    """A parameter: [layer], or [...] where there are no layers, reads and merges it."""

    def __init__(self, site: adapters.Site | None, leaves: lora.Leaves | None):
        self.tensors: dict[int | None, tuple[weights.Tensor, weights.Weight]] = {}
        self._site, self._leaves = site, leaves

    def __getitem__(self, index) -> np.ndarray:
        tensor, weight = self.tensors[None if index is Ellipsis else index]
        if self._site is None:
            turned = tuple(weight.shape[axis] for axis in weight.axes)
            return weights.read(tensor, weight, turned)
        kernel = weights.read(tensor, weight, (*self._site.inputs, *self._site.outputs))
        own = (None if leaf is None else np.asarray(leaf)[index] for leaf in self._leaves)
        # float32: whoever writes it rounds once
        return lora.merged(np.asarray(kernel, np.float32), lora.Leaves(*own))


def _by_site(
    directory: str | pathlib.Path, spec: weights.Map, known: Mapping[str, adapters.Site]
) -> dict[str, dict[tuple[str, int], str]]:
    """{site: {(leaf, layer): tensor's name}} of what a directory holds."""
    owner = {m: (s, i) for s in known.values() for i, m in enumerate(s.modules)}
    file = _tensor_file(directory)
    found: dict[str, dict[tuple[str, int], str]] = {}
    with safetensors.safe_open(file, "np") as reader:
        names = list(reader.keys())
    for name in names:
        end = next((end for end in _NAMES if name.endswith(end)), None)
        module = name.removesuffix(end or "").removeprefix(_PREFIX)
        canonical = spec.canonical(module + ".weight").removesuffix(".weight")
        if end is None or canonical not in owner:
            raise ValueError(
                f"{file}: {name} belongs to no layer that an adapter can have here; those are the "
                f"linear layers {', '.join(sorted({_short(m) for m in owner}))}."
            )
        site, layer = owner[canonical]
        found.setdefault(site.path, {})[_NAMES[end], layer] = name
    if not found:
        raise ValueError(f"{file} holds no tensor.")
    return found


def _tensor(reader, file: pathlib.Path, names, leaf: str, layer: int) -> np.ndarray:
    name = names.get((leaf, layer))
    if name is None:
        near = next(iter(names.values()))
        raise ValueError(
            f"{file}: no {leaf} for layer {layer} beside {near}; an adapter covers all layers of a "
            "stack here. Merge it with peft's merge_and_unload, and start from the checkpoint."
        )
    return reader.get_tensor(name)


def _from_torch(leaf: str, array: np.ndarray, site: adapters.Site, adapter) -> np.ndarray:
    """A tensor by PEFT as one layer's leaf."""
    inputs, outputs, rank = site.inputs, site.outputs, adapter.rank
    flat, shape = {
        "lora_a": ((rank, math.prod(inputs)), (*inputs, rank)),
        "lora_b": ((math.prod(outputs), rank), (rank, *outputs)),
        "lora_magnitude": ((math.prod(outputs),), outputs),
    }[leaf]
    fits = array.size == math.prod(flat)  # early DoRA magnitudes are [1, outputs]
    if not fits or (leaf != "lora_magnitude" and array.shape != flat):
        raise ValueError(
            f"{adapter.start}: {leaf} of {site.path} is {list(array.shape)}, expected "
            f"{list(flat)}; does the adapter belong to another model?"
        )
    return np.ascontiguousarray(array.reshape(flat).T.reshape(shape), np.float32)


def _to_torch(leaf: str, array: np.ndarray, rank: int) -> np.ndarray:
    if leaf == "lora_a":
        return np.ascontiguousarray(array.reshape(-1, rank).T)
    if leaf == "lora_b":
        return np.ascontiguousarray(array.reshape(rank, -1).T)
    return np.ascontiguousarray(array.reshape(-1))


def _tensor_file(directory: str | pathlib.Path) -> pathlib.Path:
    file = pathlib.Path(directory).expanduser() / TENSORS
    if not file.exists():
        raise ValueError(
            f"No {file}. Pickled adapters (adapter_model.bin) are refused; save with safetensors."
        )
    return file


def _short(module: str) -> str:
    return re.sub(r"\.\d+\.", ".N.", module)
