"""What a compiled program sends between devices, by axis of the mesh, from its HLO.

  %all-reduce.3 = f32[512,8]{1,0} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[8], ...

is an all-reduce of 16 KiB over groups of 4 devices; which axis that is follows from the devices'
places on the mesh. An instruction in the body of a loop counts as often as the loop turns.

A TPU's compiler writes a reduce-scatter as an all-reduce in a computation of the name
`all-reduce-scatter`; it counts as what it is.
"""

from __future__ import annotations

import collections
import math
import re

import jax
import numpy as np

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "s64": 8}
# Bytes that each device of n sends, by a ring, per byte of the result.
SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
_START = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(r"(?:to_apply|calls|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_MESH = re.compile(
    r"replica_groups=mesh\[((?:'\w+'=\d+,?)*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{((?:'\w+',?)*)\}"
)
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(SENT)})(?:-start)?\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


def sent(text: str, mesh: jax.sharding.Mesh) -> dict[str, dict[str, float]]:
    """{axis or axes, such as "fsdp": {operation: bytes that one device sends per run}}.

    ValueError where a loop's number of turns is not known.
    """
    computations, entry = _computations(text)
    times = _times(computations, entry)
    found: dict[str, dict[str, float]] = collections.defaultdict(collections.Counter)
    for name, lines in computations.items():
        for line in lines:
            matched = _OPERATION.search(line)
            if not matched or not times[name]:
                continue
            result, operation = matched[1], matched[2]
            groups = _groups(line, mesh.size)
            devices = groups.shape[1]
            if operation == "collective-permute" or devices > 1:
                size = _size(result, started="-start(" in line)
                if operation == "all-reduce" and name.startswith("all-reduce-scatter"):
                    operation, size = "reduce-scatter", size / devices
                axes = _axes(groups, mesh)
                found[axes][operation] += times[name] * size * SENT[operation](devices)
    return {axes: dict(values) for axes, values in found.items()}


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    found: dict[str, list[str]] = {}
    name, entry = "", ""
    for line in text.splitlines():
        started = _START.match(line)
        if started:
            name = started[1]
            found[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            found[name].append(line)
    return found, entry


def _times(computations: dict[str, list[str]], entry: str) -> collections.Counter:
    """How often each computation runs."""
    times: collections.Counter = collections.Counter()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in computations.get(name, ()):
            turns = 1
            if " while(" in line:
                turns = _turns(line, computations)
            called = _CALLED.findall(line)
            for listed in _BRANCHES.findall(line):
                called += [part.strip().lstrip("%") for part in listed.split(",")]
            for other in called:
                visit(other, count * turns)

    visit(entry, 1)
    return times


def _turns(line: str, computations: dict[str, list[str]]) -> int:
    """Of a loop: as it says itself, or as its condition `counter < constant` does."""
    known = _TRIPS.search(line)
    if known:
        return int(known[1])
    condition = "\n".join(computations.get(re.search(r"condition=%?([\w.\-]+)", line)[1], ()))
    bounds = re.findall(r"= s32\[\]\S* constant\((\d+)\)", condition)
    if len(bounds) != 1 or "direction=LT" not in condition:
        raise ValueError(f"How often does this loop turn? {line.strip()[:200]}")
    return int(bounds[0])


def _groups(line: str, devices: int) -> np.ndarray:
    """[groups, devices of a group], as numbers of partitions."""
    named = _MESH.search(line)
    if named:  # mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        along = re.findall(r"'(\w+)'", named[4])
        apart = [name for name in sizes if name not in along]
        order = [list(sizes).index(name) for name in (*apart, *along)]
        ids = _iota(named[2] or str(math.prod(sizes.values())), named[3])
        ids = ids.reshape(list(sizes.values())).transpose(order)
        return ids.reshape(-1, math.prod(sizes[name] for name in along))
    pairs = re.search(r"source_target_pairs=\{\{(.*?)\}\}", line)
    listed = re.search(r"replica_groups=\{\{(.*?)\}\}", line)
    if pairs or listed:
        text = (pairs or listed)[1]
        return np.array([[int(i) for i in part.split(",")] for part in text.split("},{")])
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        return _iota(iota[2], iota[3]).reshape([int(i) for i in iota[1].split(",")])
    if re.search(r"replica_groups=(?!\{\})", line):
        raise ValueError(f"Which devices are these? {line.strip()[:200]}")
    return np.arange(devices)[None]


def _iota(shape: str, turned: str | None) -> np.ndarray:
    """0, 1, 2, ... of a shape such as "4,2", its axes in an order such as "1,0"."""
    sizes = [int(i) for i in shape.split(",")]
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose([int(i) for i in turned.split(",")]) if turned else ids


def _axes(groups: np.ndarray, mesh: jax.sharding.Mesh) -> str:
    """The axes along which the devices of a group differ."""
    places = np.array(list(np.ndindex(*mesh.devices.shape)))[groups]  # [groups, n, axes]
    differ = (places != places[:, :1]).any(axis=(0, 1))
    return "+".join(name for name, one in zip(mesh.axis_names, differ) if one)


def _size(result: str, *, started: bool) -> int:
    """Bytes of a result: of the last part of what an asynchronous operation starts with."""
    sizes = [
        BYTES[kind] * math.prod(int(i) for i in shape.split(",") if i)
        for kind, shape in _SHAPE.findall(result)
    ]
    return sizes[-1] if started else sum(sizes)
