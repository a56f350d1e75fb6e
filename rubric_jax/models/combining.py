"""Several adapters of one base made into one, which is then chosen, trained on or exported as any.

concatenate   W + sum_i w_i s_i a_i b_i, exactly: the ranks add up             peft's "cat"
average       a = sum_i sqrt(w_i s_i) a_i, b likewise: of one rank, and not    peft's "linear"
              the sum of the products, for each a meets every b
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from rubric_jax import types
from rubric_jax.models import adapters, lora

Params = types.Params


class Named(NamedTuple):
    """An adapter and its leaves, on the host or on devices."""

    adapter: adapters.Adapter
    leaves: Params


def concatenate(given: Mapping[str, Named], weights: Mapping[str, float]) -> Named:
    """One adapter that adds the weighted products of all of them. A site may be in some alone.

    The scales go into b, so that the new one's is 1.
    """
    _check(given, weights, same_rank=False)
    rank = sum(one.adapter.rank for one in given.values())

    def join(site: adapters.Site, found: dict[str, lora.Leaves]) -> lora.Leaves:
        stack, n = len(site.stack), len(site.stack) + len(site.inputs)
        parts_a, parts_b = [], []
        for name, one in given.items():
            if name in found:
                a, b = (np.asarray(x, np.float32) for x in found[name][:2])
                parts_a.append(a)
                parts_b.append(b * np.float32(weights[name] * one.adapter.scale))
            else:  # without it here: nothing is added
                r = one.adapter.rank
                parts_a.append(np.zeros((*site.stack, *site.inputs, r), np.float32))
                parts_b.append(np.zeros((*site.stack, r, *site.outputs), np.float32))
        return _leaves(site, np.concatenate(parts_a, axis=n), np.concatenate(parts_b, axis=stack))

    return _combine(given, rank, join)


def average(given: Mapping[str, Named], weights: Mapping[str, float]) -> Named:
    """One adapter of the same rank: means of the factors. Weights >= 0; ranks alike.

    Sensible for adapters that began as one (of rounds, say), whose factors mean the same.
    """
    _check(given, weights, same_rank=True)
    for name, weight in weights.items():
        if weight < 0:
            raise ValueError(
                f"The adapter {name!r} has weight {weight}; factors are averaged with weights >= "
                "0. Concatenate them to take one away."
            )
    rank = next(iter(given.values())).adapter.rank

    def join(site: adapters.Site, found: dict[str, lora.Leaves]) -> lora.Leaves:
        roots = {n: math.sqrt(weights[n] * given[n].adapter.scale) for n in found}
        a, b = (
            sum(np.asarray(found[n][i], np.float32) * np.float32(roots[n]) for n in found)
            for i in (0, 1)
        )
        return _leaves(site, a, b)

    return _combine(given, rank, join)


COMBINATIONS: dict[str, Callable[[Mapping[str, Named], Mapping[str, float]], Named]] = {
    "concatenate": concatenate,
    "average": average,
}


def _combine(given: Mapping[str, Named], rank: int, join: Callable) -> Named:
    sites = {site.path: site for one in given.values() for site in one.adapter.sites}
    flat = {}
    for path in sorted(sites):
        found = {}
        for name, one in given.items():
            if any(site.path == path for site in one.adapter.sites):
                layer = one.leaves
                for part in path.split("/"):
                    layer = layer[part]
                found[name] = adapters.leaves_of(layer)
        flat |= adapters.leaves_at(sites[path], join(sites[path], found))
    made = adapters.Adapter(
        rank=rank,
        alpha=float(rank),
        rank_stabilised=False,
        dora=False,
        sites=tuple(sites[path] for path in sorted(sites)),
    )
    return Named(made, adapters.nest(flat))


def _leaves(site: adapters.Site, a: np.ndarray, b: np.ndarray) -> lora.Leaves:
    return lora.Leaves(lora_a=a, lora_b=b, lora_scale=np.ones(site.stack, np.float32))


def _check(given: Mapping[str, Named], weights: Mapping[str, float], *, same_rank: bool) -> None:
    if not given or set(given) != set(weights):
        raise ValueError(
            f"The adapters are {', '.join(given) or 'none'}, and weights are given for "
            f"{', '.join(weights) or 'none'}; give one of each."
        )
    for name, one in given.items():
        if one.adapter.dora:
            raise ValueError(
                f"The adapter {name!r} is DoRA, whose magnitudes do not add up; merge it into the "
                "checkpoint (export), and combine what is trained on that."
            )
    ranks = {name: one.adapter.rank for name, one in given.items()}
    if same_rank and len(set(ranks.values())) > 1:
        raise ValueError(f"Averaging needs equal ranks, and found {ranks}; concatenate them.")
