"""sample: instructions and a policy -> K responses each.

  {"id": "scenes-0-7", "key": "<content key>", "responses":
    [{"text": "two .", "ids": [5, 9, 2], "logps": [-0.1, -2.0, -0.3], "finished": true}, ...]}

`logps` are those of the policy itself, without temperature. Response (instruction, k) has a random
stream of its own, so neither the batch it stands in nor a restart changes it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tqdm

from rubric_jax import config as config_lib
from rubric_jax import sampling, sharding, types
from rubric_jax.data import instructions, loading, sources
from rubric_jax.stages import contrasting, files
from rubric_jax.train import passes
from rubric_jax.train import setup as setup_lib


def write_samples(
    config: config_lib.Config, out: str, *, path: str, split: str, cache: str, seed: int
) -> dict[str, Any]:
    """Samples from config.model.checkpoint into a stage file; resumes; returns the counts.

    Args:
      config: `sample`, `model`, `data` (limits, buckets) and `mesh` count.
      out: the file.
      path, split: the instructions.
      cache: where prompts are prepared.
      seed: of all responses.
    """
    spec = contrasting.parse(config.sample.contrast)
    setup = contrasting.widen(_setup(config), spec)
    policy = setup_lib.fingerprint(setup)
    knobs = dataclasses.asdict(config.sample)
    if spec is None:
        del knobs["contrast"]
    file = files.File(
        out,
        "sample",
        {
            **knobs,
            "seed": seed,
            "max_prompt": config.data.max_prompt,
            "dtype": config.model.dtype,
            "param_dtype": config.model.param_dtype,
        },
        {
            "policy": policy,
            "processor": setup.processor.fingerprint,
            "instructions": sources.fingerprint(path, split),
            **contrasting.inputs(setup, spec),
        },
    )
    if setup.is_writer:
        files.begin(file)
    setup_lib.barrier()  # all processes read what the writer keeps
    if files.read_manifest(out)["finished"] and os.path.exists(out):
        return files.read_manifest(out)["counts"]
    setup_lib.barrier()
    source = setup_lib.source(setup, path, split, cache)
    with jax.set_mesh(setup.mesh):
        _fill(setup, source, out, seed, path, split)
    setup_lib.barrier()
    counts = _counts(out) | {"dropped": dict(source.prepared.counts.dropped)}
    if setup.is_writer:
        files.finish(file, counts)
    setup_lib.barrier()
    return counts


def read_samples(path: str) -> dict[str, dict[str, Any]]:
    """Rows of a finished samples file by instruction id, each field checked.

    Of a response: text, finished, and the number of its tokens. Ids and log-probabilities stay on
    disk, where those who want them find them: they are most of the file.
    """
    files.need_finished(path, made_by="sample")
    found: dict[str, dict[str, Any]] = {}
    for where, row in files.lines(path, made_by="sample"):
        ident = files.field(where, row, "id", str)
        if ident in found:
            raise ValueError(f"{where}: id: {ident!r} occurs twice; remove one of the lines.")
        for n, response in enumerate(files.field(where, row, "responses", list)):
            if not isinstance(response, Mapping) or not isinstance(response.get("text"), str):
                raise ValueError(f"{where}: responses[{n}].text: missing; it must be text.")
        found[ident] = {
            "id": ident,
            "key": row.get("key") or "",
            "responses": [
                {
                    "text": response["text"],
                    "finished": bool(response.get("finished", True)),
                    "tokens": len(response.get("ids") or ()),
                }
                for response in row["responses"]
            ],
        }
    return found


def _setup(config: config_lib.Config) -> setup_lib.Setup:
    # Passes cut batches by the training batch size; sampling has a size of its own.
    train = dataclasses.replace(
        config.train, batch_size=config.sample.batch_size, accumulate=1, reference="none"
    )
    return setup_lib.build(dataclasses.replace(config, train=train))


def _fill(setup, source: loading.Source, out: str, seed: int, path: str, split: str) -> None:
    """Samples what the file lacks. Batches are those of one pass over all rows, done or not."""
    ids = [str(ident) for ident in source.index["id"]]
    done = (
        {row["id"] for _, row in files.lines(out, made_by="sample")}
        if os.path.exists(out)
        else set()
    )
    setup_lib.barrier()  # nobody may write before everybody has looked
    missing = np.array([ident not in done for ident in ids])
    plan = setup_lib.plan(setup, source, shuffle=False)
    steps = [s for s in range(plan.steps_per_epoch) if missing[_real(plan(s)[1])].any()]
    if not steps:
        return
    params = setup_lib.load(setup)
    spec = contrasting.parse(setup.config.sample.contrast)
    other_params = contrasting.other_params(setup, spec, params)
    asked = {i.id: i for i in instructions.read(path, split)}
    appender = files.Appender(out) if setup.is_writer else None
    bar = tqdm.tqdm(total=int(missing.sum()), desc="sample", disable=not setup.is_writer)
    tokens, started = 0, time.monotonic()
    for start, stop in passes.runs(steps):
        read = (
            setup_lib.batches(setup, each, plan, start=start, stop=stop)
            for each in contrasting.sources(source, spec)
        )
        for batches in zip(*read, strict=True):
            batch, *others = (batch for batch, _ in batches)
            rows = plan(start)[1]  # of all processes
            start += 1
            numbers = seeds(seed, ids, rows)
            found = draw(setup, params, batch, numbers, (spec, others, other_params))
            tokens += int(found.mask.sum())
            if appender:
                appender.add(
                    {"id": ids[row], "key": asked[ids[row]].key, "responses": responses}
                    for row, responses in zip(rows, texts(setup, found), strict=True)
                    if row >= 0 and missing[row]
                )
            bar.update(int(missing[_real(rows)].sum()))
            bar.set_postfix_str(f"{tokens / (time.monotonic() - started):.0f} tokens/s")
    bar.close()
    if appender:
        appender.close()


def draw(
    setup: setup_lib.Setup,
    params: types.Params,
    batch: types.Batch,
    numbers: np.ndarray,
    contrast: tuple = (None, (), None),
) -> sampling.Samples:
    """Responses of all processes' rows, on the host, as config.sample wants them.

    Args:
      batch: this process's rows; only prompts and media are read.
      numbers: `seeds` of all processes' rows.
      contrast: (spec, batches, parameters) of what the policy is set against; see contrasting.py.
    """
    knobs = setup.config.sample
    index, count = sharding.process_block(setup.mesh)
    own = np.split(numbers, count)[index]
    placed, own = sharding.put_batch((batch, own), setup.mesh)
    found = sampling.sample(
        setup.vlm,
        params,
        placed,
        own,
        count=knobs.count,
        length=knobs.tokens,
        temperature=knobs.temperature,
        top_k=knobs.top_k,
        top_p=knobs.top_p,
        min_p=knobs.min_p,
        stop=setup.processor.eos_ids,
        against=contrasting.against(setup, contrast[0], placed, *contrast[1:]),
    )
    return sharding.to_host(found)


def seeds(seed: int | str, ids: list[str], rows: np.ndarray) -> np.ndarray:
    """uint32 [B]: a number for each instruction that depends on nothing else."""
    names = [f"{seed}/{ids[row]}" if row >= 0 else "" for row in rows]
    digests = [hashlib.sha256(name.encode()).digest()[:4] for name in names]
    return np.array([int.from_bytes(digest, "little") for digest in digests], np.uint32)


def texts(setup: setup_lib.Setup, found: sampling.Samples) -> list[list[dict[str, Any]]]:
    """Per row its K responses, as a samples file holds them."""
    rows = []
    for ids, mask, logps, finished in zip(*found, strict=True):
        row = []
        for k in range(len(ids)):
            own = ids[k][mask[k]]
            row.append(
                {
                    "text": setup.processor.decode(own),
                    "ids": own.tolist(),
                    "logps": [round(float(x), 6) for x in logps[k][mask[k]]],
                    "finished": bool(finished[k]),
                }
            )
        rows.append(row)
    return rows


def _counts(out: str) -> dict[str, Any]:
    counts = {"instructions": 0, "responses": 0, "tokens": 0, "unfinished": 0, "empty": 0}
    for _, row in files.lines(out, made_by="sample"):
        counts["instructions"] += 1
        counts["responses"] += len(row["responses"])
        counts["tokens"] += sum(len(r["ids"]) for r in row["responses"])
        counts["unfinished"] += sum(not r["finished"] for r in row["responses"])
        counts["empty"] += sum(not r["text"].strip() for r in row["responses"])
    return counts


def _real(rows: np.ndarray) -> np.ndarray:
    return rows[rows >= 0]
