"""Objectives: weighted sums of pure loss terms over named branches.

A config lists the terms by name. MPO (InternVL, arXiv:2411.10442) is

  config.objective = {
      "dpo": {"weight": 0.8, "win": "chosen", "lose": "rejected", "beta": 0.1},
      "bco": {"weight": 0.2, "win": "chosen", "lose": "rejected", "beta": 0.1},
      "nll": {"weight": 1.0, "on": "chosen"},
  }

and a second entry of the same term names it: {"visual": {"term": "dpo", "win": "chosen",
"lose": "chosen@corrupted", "beta": 0.1}}.

Modifiers go around a term: {"dpo": {..., "with": {"ld": {"tail": 0.5}, "wpo": {}}}}; see
modifiers.py. docs/objectives.md has the formula, the source and a config line for every name.

A term is `term(logps, labels, *, branches and knobs) -> (loss [B], {metric: [B]})`: pure, per
instance, 0 without gradient where one of its branches is absent. One with state takes it as third
argument, and its line in STATES says how the state starts and takes in a batch.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rubric_jax import config, types
from rubric_jax.objectives import (
    bco,
    binding,
    divergence,
    groups,
    likelihood,
    lists,
    metrics,
    modifiers,
    modpo,
    pairwise,
    reference_free,
    sides,
    soft,
)
from rubric_jax.objectives import heads as head_terms

pair_metrics = metrics.pair_metrics
_NO_HEADS: Mapping[str, types.HeadShape] = {}


class State(NamedTuple):
    """How the state of a term lives: `update` comes before the term in the same step."""

    init: Callable[[], Any]  # () -> state
    update: Callable[..., Any]  # (state, logps, labels, **knobs of the term) -> state


OBJECTIVES = {
    # One logit per pair.
    "dpo": pairwise.dpo,
    "sigmoid_norm": pairwise.sigmoid_norm,
    "hinge": pairwise.hinge,
    "ipo": pairwise.ipo,
    "robust": pairwise.robust,
    "exo_pair": pairwise.exo_pair,
    "discopop": pairwise.discopop,
    "dpop": pairwise.dpop,
    "flex_dpo": pairwise.flex_dpo,
    "clipped_dpo": pairwise.clipped_dpo,
    "gap_order": pairwise.gap_order,
    # Each side by its own log-ratio.
    "bco": bco.bco,
    "nca_pair": sides.nca_pair,
    "sppo_hard": sides.sppo_hard,
    "apo_zero": sides.apo_zero,
    "apo_down": sides.apo_down,
    "kto": sides.kto,
    "aot": sides.aot,
    "aot_unpaired": sides.aot_unpaired,
    # Without a reference.
    "simpo": reference_free.simpo,
    "simpo_hinge": reference_free.simpo_hinge,
    "orpo": reference_free.orpo,
    "cpo": reference_free.cpo,
    # One branch.
    "nll": likelihood.nll,
    "logistic_nll": likelihood.logistic_nll,
    "anchor": likelihood.anchor,
    "shift": likelihood.shift,
    "sft_phi": likelihood.sft_phi,
    # The whole distribution over the next token.
    "token_kl": divergence.token_kl,
    "tdpo": divergence.tdpo,
    "sparsepo": divergence.sparsepo,
    "dpo_farthest": divergence.dpo_farthest,
    # Reward vectors.
    "modpo": modpo.modpo,
    "modpo_hinge": modpo.modpo_hinge,
    "modpo_rotation": modpo.modpo_rotation,
    "soft": soft.soft,
    "squared": soft.squared,
    "smpo": soft.smpo,
    # Lists.
    "plackett_luce": lists.plackett_luce,
    "pro": lists.pro,
    "listnet": lists.listnet,
    "ranknet": lists.ranknet,
    "ranklist": lists.ranklist,
    "lambda_rank": lists.lambda_rank,
    "tree_rank": lists.tree_rank,
    # Policy gradients over a group.
    "rloo": groups.rloo,
    "grpo": groups.grpo,
    "papo": groups.papo,
    "rwr": groups.rwr,
    "reverse_kl": groups.reverse_kl,
    # Scores of heads.
    "bt": head_terms.bt,
    "bt_mixture": head_terms.bt_mixture,
    "bt_user": head_terms.bt_user,
    "regression": head_terms.regression,
    "degree": head_terms.degree,
}
STATES = {"bco": State(bco.init, bco.update)}
# These never read logps.ref.
WITHOUT_REFERENCE = frozenset(
    {"nll", "logistic_nll", "simpo", "simpo_hinge", "orpo", "cpo", "pro", "rloo", "rwr"}
    | {"token_kl", "bt", "bt_mixture", "bt_user", "regression", "degree"}
)
# These read logps.kl, which takes the reference itself (config.train.reference = "step").
READS_KL = frozenset({"token_kl", "tdpo", "sparsepo"})
# These read logps.js, and these logps.steps.
READS_JS = frozenset({"dpo_farthest"})
READS_STEPS = frozenset({"tree_rank"})
# These read labels.rewards.
READS_REWARDS = frozenset(
    {"modpo", "modpo_hinge", "modpo_rotation", "soft", "squared", "smpo"}
    | {"plackett_luce", "pro", "listnet", "ranknet", "ranklist", "lambda_rank", "tree_rank"}
    | {"rloo", "grpo", "papo", "rwr", "regression"}
)
# These read labels.axis.
READS_AXIS = frozenset({"modpo", "modpo_hinge", "bt_user"})
# These read labels.margin.
READS_MARGIN = frozenset(
    {"dpo", "sigmoid_norm", "hinge", "robust", "exo_pair", "discopop", "dpop", "flex_dpo"}
    | {"clipped_dpo", "simpo", "simpo_hinge", "cpo", "soft", "bt", "dpo_farthest"}
)
# What is wrong with a term's branches: (layout, **static knobs) -> text, "" if nothing.
LAYOUT_CHECKS = {"dpo_farthest": divergence.one_response}
# What only the data can show: (labels, **traced knobs) -> None or ValueError, on the host.
CHECKS = {"modpo": modpo.check, "modpo_hinge": modpo.check}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    """One entry of an objective, bound: what remains to be given is traced."""

    entry: str  # its name in the config, and in the metrics
    name: str  # of the function in OBJECTIVES
    static: Mapping[str, Any]  # branch indices and choices
    modifiers: Mapping[str, Mapping[str, Any]]  # {name: its static knobs}, in order

    @property
    def heads(self) -> frozenset[str]:
        """The heads that the term or something around it reads."""
        around = (
            binding.named_heads(modifiers.MODIFIERS[name], static)
            for name, static in self.modifiers.items()
        )
        own = binding.named_heads(OBJECTIVES[self.name], self.static)
        return frozenset(name for named in (own, *around) for name in named.values())

    @property
    def needs_reference(self) -> bool:
        around = modifiers.WITHOUT_REFERENCE.isdisjoint(self.modifiers)
        return around and self.name not in WITHOUT_REFERENCE


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
    """A weighted sum of terms. A value: `knobs` and the state go through jit as arguments.

    objective = objectives.build(config.objective, layout, axes)
    loss, metrics, state = objective(objective.knobs, objective.init_state(), logps, labels)
    """

    terms: tuple[Term, ...]
    knobs: Mapping[str, Mapping[str, Any]]  # {entry: {"weight": [], "beta": [], ..., "with": {}}}
    axes: tuple[str, ...]

    @property
    def needs_reference(self) -> bool:
        return self.needs_kl or any(term.needs_reference for term in self.terms)

    @property
    def needs_kl(self) -> bool:
        return any(term.name in READS_KL for term in self.terms)

    @property
    def behaviours(self) -> dict[str, str]:
        """{entry: who sampled its responses} of the terms that ask (see groups.grpo)."""
        return {t.entry: t.static["behaviour"] for t in self.terms if "behaviour" in t.static}

    @property
    def needs_js(self) -> bool:
        return any(term.name in READS_JS for term in self.terms)

    @property
    def steps(self) -> tuple[str, int] | None:
        """(what ends a step, how many at most) of the terms that read steps; None if none does."""
        wanted = {
            (term.static["ends"], term.static["steps"])
            for term in self.terms
            if term.name in READS_STEPS
        }
        if len(wanted) > 1:
            raise ValueError(
                f"The terms of config.objective cut responses into different steps: {wanted}; give "
                "all of them the same knobs ends and steps."
            )
        return next(iter(wanted), None)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads that the terms read."""
        return tuple(sorted(frozenset().union(*(term.heads for term in self.terms))))

    @property
    def needs_rewards(self) -> bool:
        return any(
            term.name in READS_REWARDS or not modifiers.READS_REWARDS.isdisjoint(term.modifiers)
            for term in self.terms
        )

    @property
    def needs_axis(self) -> bool:
        return any(
            term.name in READS_AXIS or not modifiers.READS_AXIS.isdisjoint(term.modifiers)
            for term in self.terms
        )

    @property
    def needs_preference(self) -> bool:
        """Whether a term's weights are those that prompts state."""
        knobs = [term.static for term in self.terms]
        knobs += [static for term in self.terms for static in term.modifiers.values()]
        return any(static.get("weights") == "prompt" for static in knobs)

    @property
    def spans(self) -> tuple[str, ...]:
        """Names of the spans that terms weigh tokens by; what a batch has to carry."""
        found = [
            term.modifiers["spans"]["name"] for term in self.terms if "spans" in term.modifiers
        ]
        return tuple(sorted(set(found)))

    def init_state(self) -> dict[str, Any]:
        """{entry: state} of the terms that have one; part of the train state."""
        return {t.entry: STATES[t.name].init() for t in self.terms if t.name in STATES}

    def check(self, labels: types.Labels) -> None:
        """Raises ValueError where the labels do not suit a term. Host arrays, before training."""
        for term in self.terms:
            knobs = self.knobs[term.entry]
            if term.name in CHECKS:
                CHECKS[term.name](labels, **binding.stated({**knobs, **term.static}, labels))
            for name in term.modifiers.keys() & modifiers.CHECKS.keys():
                values = {**knobs["with"][name], **term.modifiers[name]}
                modifiers.CHECKS[name](labels, **binding.stated(values, labels))

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
            traced = knobs[term.entry]
            values = {k: v for k, v in traced.items() if k not in ("weight", "with")}
            values = binding.stated({**values, **term.static}, labels)
            seen, factor = _modified(term, traced.get("with", {}), logps, labels)
            carried = ()
            if term.name in STATES:
                update = STATES[term.name].update
                state[term.entry] = update(state[term.entry], *seen, **values)
                carried = (state[term.entry],)
            loss, reported = OBJECTIVES[term.name](*seen, *carried, **values)
            loss = loss * factor
            total = total + traced["weight"] * loss
            logged[f"loss/{term.entry}"] = loss
            logged |= {f"{term.entry}/{name}": value for name, value in reported.items()}
            if "rewards/chosen" not in logged and {"win", "lose", "beta"} <= values.keys():
                pair = {k: values[k] for k in ("win", "lose", "beta")}
                # As the data have it; but where no log-ratio is read, of what is in its place.
                read = logps if term.needs_reference or not term.heads else seen[0]
                logged |= pair_metrics(read, labels, **pair, axes=self.axes)
        return labels.weight * total, logged, state


def _modified(term: Term, knobs: Mapping, logps: types.Logps, labels: types.Labels):
    """((logps, labels) as the term sees them, the factor of its loss)."""
    seen, factor = (logps, labels), 1.0
    for name, static in term.modifiers.items():
        values = binding.stated({**knobs[name], **static}, labels)
        if name in modifiers.VIEWS:
            seen = modifiers.VIEWS[name](*seen, **values)
        else:
            factor = factor * modifiers.FACTORS[name](logps, labels, **values)
    return seen, factor


def build(
    spec: Mapping[str, Mapping[str, Any]],
    layout: types.Layout,
    axes: tuple[str, ...] = (),
    heads: Mapping[str, types.HeadShape] = _NO_HEADS,
) -> Objective:
    """The objective of a config: {entry: {"term": the entry's name, "weight": 1.0, **knobs}},
    and "with": {modifier: knobs} where something goes around the term. heads: what
    config.model.heads gives, by name.

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
        around = values.pop("with", {})
        term = config.bind(OBJECTIVES, name, values, what=f"{where}: term")
        known = {"layout": layout, "axes": axes, "heads": heads}
        static, traced = _resolve(name, term, values, where, known)
        knobs[entry] = {"weight": binding.number(weight, "weight", f"{where}.weight"), **traced}
        outer, outer_traced = _bind_modifiers(around, name, values, where, known)
        if outer:
            knobs[entry]["with"] = outer_traced
        terms.append(Term(entry=entry, name=name, static=static, modifiers=outer))
    return Objective(terms=tuple(terms), knobs=knobs, axes=tuple(axes))


def _resolve(name, function, values, where, known):
    """(static knobs, traced knobs), and ValueError where a head does not suit."""
    static, traced = binding.resolve(function, values, where=where, **known)
    shapes = {
        knob: known["heads"][head] for knob, head in binding.named_heads(function, static).items()
    }
    wrong = head_terms.fits(name, shapes, static, known["axes"]) if shapes else ""
    if wrong:
        raise ValueError(f"{where}: {wrong} Set outputs in config.model.heads.")
    if name in LAYOUT_CHECKS:
        wrong = LAYOUT_CHECKS[name](known["layout"], **static)
        if wrong:
            raise ValueError(f"{where}.{wrong}")
    return static, traced


def _bind_modifiers(around, term, values, where, known):
    """({modifier: static knobs}, {modifier: traced knobs}) of an entry's "with"."""
    if not isinstance(around, Mapping):
        raise ValueError(f"{where}.with is {around!r}; it must map modifiers to their knobs.")
    static, traced = {}, {}
    for name, given in around.items():
        here = f"{where}.with.{name}"
        if not isinstance(given, Mapping):
            raise ValueError(f"{here} is {given!r}; it must be a mapping of knobs.")
        table = modifiers.MODIFIERS
        accepted = inspect.signature(table[name]).parameters if name in table else {}
        sides_of_term = {k: values[k] for k in ("win", "lose") if k in accepted and k in values}
        if {"win", "lose"} & given.keys():
            raise ValueError(f"{here} takes win and lose from its term; leave them out.")
        if "win" in accepted and len(sides_of_term) < 2:
            raise ValueError(f"{here} compares two branches, but {term} has no win and lose.")
        if name in modifiers.ADDS_MARGIN and term not in READS_MARGIN:
            raise ValueError(
                f"{here} adds to the margin, which {term} does not read; it must go around "
                f"{config.one_of(term, sorted(READS_MARGIN))}"
            )
        given = {**given, **sides_of_term}
        modifier = config.bind(table, name, given, what=f"{where}.with: modifier")
        static[name], traced[name] = _resolve(name, modifier, given, here, known)
    return static, traced
