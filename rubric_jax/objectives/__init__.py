"""Objectives: weighted sums of pure loss terms over named branches.

A config lists the terms by name. MPO (InternVL, arXiv:2411.10442) is

  config.objective = {
      "dpo": {"weight": 0.8, "win": "chosen", "lose": "rejected", "beta": 0.1},
      "bco": {"weight": 0.2, "win": "chosen", "lose": "rejected", "beta": 0.1},
      "nll": {"weight": 1.0, "on": "chosen"},
  }

and a second entry of the same term names it: {"visual": {"term": "dpo", "win": "chosen",
"lose": "chosen@corrupted", "beta": 0.1}}.

A term is `term(logps, labels, *, branches and knobs) -> (loss [B], {metric: [B]})`: pure, per
instance, 0 without gradient where one of its branches is absent. One with state takes it as third
argument, and its line in STATES says how the state starts and takes in a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rubric_jax import config, types
from rubric_jax.objectives import bco, binding, likelihood, metrics, modpo, pairwise

pair_metrics = metrics.pair_metrics


class State(NamedTuple):
    """How the state of a term lives: `update` comes before the term in the same step."""

    init: Callable[[], Any]  # () -> state
    update: Callable[..., Any]  # (state, logps, labels, **knobs of the term) -> state


OBJECTIVES = {
    "dpo": pairwise.dpo,
    "modpo": modpo.modpo,
    "nll": likelihood.nll,
    "bco": bco.bco,
}
STATES = {"bco": State(bco.init, bco.update)}
WITHOUT_REFERENCE = frozenset({"nll"})  # these never read logps.ref
READS_REWARDS = frozenset({"modpo"})  # these read labels.rewards
# What only the data can show: (labels, **traced knobs) -> None or ValueError, on the host.
CHECKS = {"modpo": modpo.check}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    """One entry of an objective, bound: what remains to be given is traced."""

    entry: str  # its name in the config, and in the metrics
    name: str  # of the function in OBJECTIVES
    static: Mapping[str, Any]  # branch indices and choices


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
    """A weighted sum of terms. A value: `knobs` and the state go through jit as arguments.

    objective = objectives.build(config.objective, layout, axes)
    loss, metrics, state = objective(objective.knobs, objective.init_state(), logps, labels)
    """

    terms: tuple[Term, ...]
    knobs: Mapping[str, Mapping[str, np.ndarray]]  # {entry: {"weight": [], "beta": [], ...}}
    axes: tuple[str, ...]

    @property
    def needs_reference(self) -> bool:
        return any(term.name not in WITHOUT_REFERENCE for term in self.terms)

    @property
    def needs_rewards(self) -> bool:
        return any(term.name in READS_REWARDS for term in self.terms)

    def init_state(self) -> dict[str, Any]:
        """{entry: state} of the terms that have one; part of the train state."""
        return {t.entry: STATES[t.name].init() for t in self.terms if t.name in STATES}

    def check(self, labels: types.Labels) -> None:
        """Raises ValueError where the labels do not suit a term. Host arrays, before training."""
        for term in self.terms:
            if term.name in CHECKS:
                CHECKS[term.name](labels, **self.knobs[term.entry])

    def __call__(
        self, knobs: Mapping, state: Mapping, logps: types.Logps, labels: types.Labels
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
        """(loss [B] in nats, times labels.weight; {metric: [B]}; the next state).

        knobs has the structure of `self.knobs`, with whatever numbers a sweep asks for. With
        microbatches, a term's state and nll's `batch_tokens` see one microbatch at a time.
        Metrics: loss/<entry> without weights, <entry>/<what the term reports>, and those of
        `pair_metrics` for the first entry that compares two branches under a beta.
        """
        total, logged, state = jnp.zeros_like(labels.weight), {}, dict(state)
        for term in self.terms:
            values = {k: v for k, v in knobs[term.entry].items() if k != "weight"}
            values |= term.static
            carried = ()
            if term.name in STATES:
                update = STATES[term.name].update
                state[term.entry] = update(state[term.entry], logps, labels, **values)
                carried = (state[term.entry],)
            loss, reported = OBJECTIVES[term.name](logps, labels, *carried, **values)
            total = total + knobs[term.entry]["weight"] * loss
            logged[f"loss/{term.entry}"] = loss
            logged |= {f"{term.entry}/{name}": value for name, value in reported.items()}
            if "rewards/chosen" not in logged and {"win", "lose", "beta"} <= values.keys():
                pair = {k: values[k] for k in ("win", "lose", "beta")}
                logged |= pair_metrics(logps, labels, **pair, axes=self.axes)
        return labels.weight * total, logged, state


def build(
    spec: Mapping[str, Mapping[str, Any]], layout: types.Layout, axes: tuple[str, ...] = ()
) -> Objective:
    """The objective of a config: {entry: {"term": the entry's name, "weight": 1.0, **knobs}}.

    Raises ValueError, naming config.objective.<entry>.<knob>, on an unknown term, knob, branch or
    axis (with the nearest match), a missing knob, or a number out of range.
    """
    if not spec:
        raise ValueError(
            "config.objective is empty; give it at least one term, such as "
            '{"dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1}}.'
        )
    terms, knobs = [], {}
    for entry, values in spec.items():
        where = f"config.objective.{entry}"
        if not isinstance(values, Mapping):
            raise ValueError(f"{where} is {values!r}; it must be a mapping of knobs.")
        values = dict(values)
        name, weight = values.pop("term", entry), values.pop("weight", 1.0)
        term = config.bind(OBJECTIVES, name, values, what=f"{where}: term")
        static, traced = binding.resolve(term, values, where=where, layout=layout, axes=axes)
        terms.append(Term(entry=entry, name=name, static=static))
        knobs[entry] = {"weight": binding.number(weight, "weight", f"{where}.weight"), **traced}
    return Objective(terms=tuple(terms), knobs=knobs, axes=tuple(axes))
