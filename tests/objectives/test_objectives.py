"""The contract of every term in the table, their weighted sum, and what a config may get wrong."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import objectives, types
from tests.objectives.conftest import SHAPES

AXES = ("correctness", "grounding", "format")
LAYOUT = types.Layout.of(("chosen", "rejected", "chosen@corrupted", "chosen@other"))
PAIR = {"win": "chosen", "lose": "rejected", "beta": 0.1}
SIDES = {"win": "chosen", "lose": "rejected"}
WEIGHTS = [0.5, 0.3, 0.2]
LIST = {"over": ["chosen", "rejected"], "weights": WEIGHTS}
WEIGHTED = {**PAIR, "weights": WEIGHTS}
SPECS = {  # one entry for each term of the table
    "dpo": {**PAIR, "label_smoothing": 0.1},
    "sigmoid_norm": PAIR,
    "hinge": PAIR,
    "ipo": PAIR,
    "robust": {**PAIR, "flip_rate": 0.1},
    "exo_pair": PAIR,
    "discopop": PAIR,
    "dpop": {**PAIR, "penalty": 5.0},
    "flex_dpo": {**PAIR, "beta_lose": 0.08},
    "clipped_dpo": {**PAIR, "clip": 0.9},
    "gap_order": {
        "hard_win": "chosen",
        "hard_lose": "rejected",
        "easy_win": "chosen@corrupted",
        "easy_lose": "chosen@other",
        "beta": 0.1,
    },
    "bco": PAIR,
    "nca_pair": PAIR,
    "sppo_hard": PAIR,
    "apo_zero": PAIR,
    "apo_down": PAIR,
    "kto": PAIR,
    "aot": PAIR,
    "aot_unpaired": PAIR,
    "simpo": {**PAIR, "gamma": 0.5},
    "simpo_hinge": {**PAIR, "gamma": 0.5},
    "orpo": {"win": "chosen", "lose": "rejected", "lam": 0.1},
    "cpo": PAIR,
    "nll": {"on": "chosen"},
    "logistic_nll": {"on": "chosen", "beta": 0.1},
    "anchor": {"on": "chosen", "beta": 0.1},
    "shift": {"on": "chosen", "coef": -0.05},
    "sft_phi": {"on": "chosen", "phi": "sq_hellinger"},
    "token_kl": {"on": "chosen"},
    "tdpo": PAIR,
    "modpo": WEIGHTED,
    "modpo_hinge": WEIGHTED,
    "modpo_rotation": WEIGHTED,
    "soft": WEIGHTED,
    "squared": WEIGHTED,
    "smpo": WEIGHTED,
    "plackett_luce": {**LIST, "beta": 0.1},
    "pro": LIST,
    "listnet": {**LIST, "beta": 0.1},
    "ranknet": {**LIST, "beta": 0.1},
    "ranklist": {**LIST, "beta": 0.1},
    "lambda_rank": {**LIST, "beta": 0.1},
    "rloo": LIST,
    "grpo": {**LIST, "beta_kl": 0.1},
    "papo": {
        "over": ["chosen", "rejected"],
        "outcome": [0.5, 0.3, 0.2],
        "process": [0.0, 1.0, 0.0],
        "correct": 0.3,
        "beta_kl": 0.1,
    },
    "rwr": LIST,
    "reverse_kl": {"over": ["chosen", "rejected"]},
    "sparsepo": {**PAIR, "mask": "mask", "kl_mask": "kl_mask", "l1": 0.1},
    "dpo_farthest": {"win": "chosen", "over": ["chosen@corrupted", "chosen@other"], "beta": 0.1},
    "tree_rank": {**LIST, "beta": 0.1, "steps": 2},
    "bt": {**SIDES, "head": "score", "center": 0.01},
    "bt_mixture": {**SIDES, "head": "scores", "router": "router"},
    "bt_user": {**SIDES, "head": "point", "prototypes": "prototypes", "users": "users"},
    "regression": {"on": "chosen", "head": "scores"},
    "degree": {"over": ["chosen", "rejected"], "head": "scores"},
}
VARIANTS = {  # and one for each further way to set it up
    "dpo, forward_kl": {**PAIR, "divergence": "forward_kl"},
    "dpo, js_divergence": {**PAIR, "divergence": "js_divergence"},
    "dpo, alpha_divergence": {**PAIR, "divergence": "alpha_divergence", "alpha": 0.5},
    "dpo, alpha 1": {**PAIR, "divergence": "alpha_divergence", "alpha": 1.0},
    "exo_pair, alpha 2": {**PAIR, "divergence": "alpha_divergence", "alpha": 2.0},
    "discopop, forward_kl": {**PAIR, "divergence": "forward_kl", "tau": 0.9},
    "ipo, mean": {**PAIR, "tokens": "mean"},
    "ipo, forward_kl": {**PAIR, "divergence": "forward_kl"},
    "bco, none": {**PAIR, "delta": "none"},
    "kto, kl": {**PAIR, "kl": "chosen@other", "z0": 0.1},
    "nll, sum": {"on": "chosen", "reduce": "sum"},
    "nll, batch_tokens": {"on": "chosen", "reduce": "batch_tokens"},
    "anchor, below": {"on": "rejected", "beta": 0.1, "sign": -1},
    "sft_phi, linear": {"on": "chosen", "phi": "linear"},
    "sft_phi, pearson": {"on": "chosen", "phi": "pearson"},
    "token_kl, reverse": {"on": "chosen", "direction": "reverse", "reduce": "mean"},
    "tdpo, 1": {**PAIR, "alpha": 1.0, "detach": False},
    "lambda_rank, policy": {**LIST, "beta": 0.1, "rank_by": "policy"},
    "rwr, mean": {**LIST, "tokens": "mean"},
    "grpo, policy": {**LIST, "beta_kl": 0.1, "behaviour": "policy", "std": False},
    "grpo, group": {**LIST, "beta_kl": 0.1, "tokens": "group", "apart": True},
    "grpo, sum": {**LIST, "beta_kl": 0.1, "tokens": "sum"},
    "dpo with ld": {**PAIR, "with": {"ld": {"tail": 0.3}}},
    "dpo with spans": {**PAIR, "with": {"spans": {"inside": 2.0, "outside": 0.5}}},
    "dpo with reward_margin": {**PAIR, "with": {"reward_margin": {"weights": WEIGHTS}}},
    "dpo with gated_margin": {
        **PAIR,
        "with": {"gated_margin": {"weights": WEIGHTS, "essential": [0, 1, 0], "pass_at": 0.0}},
    },
    "dpo with length_margin": {**PAIR, "with": {"length_margin": {"per_token": 0.02}}},
    "dpo with wpo": {**PAIR, "with": {"wpo": {}}},
    "sparsepo, common": {**PAIR, "mask": "mask", "kl_mask": "mask", "l1_kl": 0.1},
    "dpo with by_head": {**PAIR, "with": {"by_head": {"head": "score"}}},
    "ranklist with by_head": {**LIST, "beta": 1.0, "with": {"by_head": {"head": "score"}}},
    "dpo with axis_weight": {**PAIR, "with": {"axis_weight": {"weights": WEIGHTS}}},
}
CASES = SPECS | VARIANTS
MPO = {"dpo": {**PAIR, "weight": 0.8}, "bco": {**PAIR, "weight": 0.2}, "nll": {"on": "chosen"}}


def build(spec):
    return objectives.build(spec, LAYOUT, AXES, SHAPES)


def name_of(case):
    return case.split(" with ")[0].split(",")[0]


@functools.cache
def objective_of(case):
    """Every term of the table in turn, as an objective of its own."""
    return build({"it": {"term": name_of(case), **CASES[case]}})


@functools.cache
def _compiled(case):
    objective = objective_of(case)

    def total(policy, rewards, deeper, logps, labels):
        kl, heads = deeper
        logps = logps._replace(policy=policy, kl=kl, heads=heads)
        labels = labels._replace(rewards=rewards)
        loss, metrics, _ = objective(objective.knobs, objective.init_state(), logps, labels)
        return loss.sum(), (loss, metrics)

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))


def evaluate(case, logps, labels):
    """(loss, metrics, d loss / d policy, d loss / d rewards) of a case, compiled once.

    What goes into divergences and heads, which the policy decides too, is added to the gradient:
    that of a whole branch at its first token.
    """
    if logps.weights is None:
        logps = logps._replace(weights=np.ones_like(logps.mask))
    deeper = (logps.kl, logps.heads)
    (_, (loss, metrics)), (gradient, into_rewards, (into_kl, into_heads)) = _compiled(case)(
        logps.policy, labels.rewards, deeper, logps, labels
    )
    gradient = np.asarray(gradient) + sum(map(np.asarray, into_kl))
    for name, shape in SHAPES.items():
        if shape.of == "token":
            gradient += np.abs(into_heads[name]).sum(axis=-1)
        elif shape.of == "branch":
            gradient[:, :, 0] += np.abs(into_heads[name]).sum(axis=-1)
    return np.asarray(loss), metrics, gradient, np.asarray(into_rewards)


def loss_of(objective, logps, labels):
    return objective(objective.knobs, objective.init_state(), logps, labels)[0]


def named(objective):
    """Indices of the branches that a term names."""
    (term,) = objective.terms
    signature = inspect.signature(objectives.OBJECTIVES[term.name], eval_str=True)
    hints = {knob: p.annotation for knob, p in signature.parameters.items()}
    single = {
        value
        for knob, value in term.static.items()
        if hints[knob] in (types.Branch, types.Branch | None) and value is not None
    }
    lists = [value for knob, value in term.static.items() if hints[knob] == types.Branches]
    return single.union(*lists)


@pytest.fixture(params=sorted(CASES))
def case(request):
    return request.param


def test_every_term_and_modifier_of_the_tables_has_a_case():
    assert {name_of(case) for case in CASES} == objectives.OBJECTIVES.keys()
    around = {name for spec in CASES.values() for name in spec.get("with", {})}
    assert around | {"consistent"} == objectives.modifiers.MODIFIERS.keys()


def test_every_term_returns_one_value_per_instance(case, pairs32):
    loss, metrics, _, _ = evaluate(case, *pairs32)
    assert loss.shape == (2,)
    assert loss.dtype == jnp.float32
    assert {value.shape for value in metrics.values()} == {(2,)}
    assert {value.dtype for value in metrics.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ["dpo", "aot", "pro", "grpo"])
def test_a_term_is_the_same_under_jit(name, pairs32):
    term = objective_of(name)
    plain = term(term.knobs, term.init_state(), *pairs32)
    loss, metrics, _, _ = evaluate(name, *pairs32)
    np.testing.assert_allclose(loss, plain[0], atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain[1], dict(metrics))


@pytest.mark.parametrize("gap", [(1e5, -1e5), (-1e5, 1e5), (1e5, 1e5), (-1e5, -1e5)])
def test_every_term_is_finite_at_extreme_log_ratios(case, pairs32, gap):
    logps, labels = pairs32  # beta * gap = +-1e4
    policy = np.array(logps.policy)
    policy[:, 0, 0] += gap[0]
    policy[:, 1, 0] += gap[1]
    loss, metrics, gradient, _ = evaluate(case, logps._replace(policy=policy), labels)
    assert np.isfinite(loss).all()
    assert np.isfinite(gradient).all()
    assert all(np.isfinite(value).all() for value in metrics.values())


def test_every_term_ignores_what_stands_in_the_padding(case, pairs32, make_pairs):
    filled = make_pairs(np.float32, fill=-1234.5)
    loss, _, gradient, _ = evaluate(case, *filled)
    np.testing.assert_array_equal(evaluate(case, *pairs32)[0], loss)
    np.testing.assert_array_equal(gradient[filled[0].mask == 0], 0)


def test_every_term_is_silent_where_its_branches_are_absent(case, pairs32):
    logps, labels = pairs32
    mask = np.array(logps.mask)
    mask[1, :2] = 0
    loss, metrics, gradient, _ = evaluate(case, logps._replace(mask=mask), labels)
    assert loss[1] == 0
    assert all(value[1] == 0 for value in metrics.values())
    assert loss[0] != 0
    np.testing.assert_array_equal(gradient[1], 0)
    assert gradient[0].any()


def test_every_term_says_truly_which_heads_it_reads(case, pairs32):
    logps, labels = pairs32
    reads = objective_of(case).heads
    for name, values in logps.heads.items():
        # Not the same everywhere, so that a term cannot cancel it.
        moved = values + np.float32(0.3) * np.arange(1, 1 + values.size).reshape(values.shape) % 2
        heads = {**logps.heads, name: moved.astype(np.float32)}
        changed = evaluate(case, logps._replace(heads=heads), labels)[0]
        changed = changed != evaluate(case, *pairs32)[0]
        assert changed.any() if name in reads else not changed.any()


@pytest.mark.parametrize("absent", range(4))
def test_every_term_needs_each_branch_that_it_names(case, pairs32, absent):
    """But kto, which counts the side that is there, and dpo_farthest, which takes another."""
    logps, labels = pairs32
    mask = np.array(logps.mask)
    mask[1, absent] = 0
    loss, _, gradient, _ = evaluate(case, logps._replace(mask=mask), labels)
    np.testing.assert_array_equal(gradient[1, absent], 0)
    if absent in named(objective_of(case)) and name_of(case) not in ("kto", "dpo_farthest"):
        assert loss[1] == 0
        np.testing.assert_array_equal(gradient[1], 0)


def test_every_term_takes_an_empty_batch(case, pairs32):
    logps, labels = pairs32
    loss, _, gradient, _ = evaluate(case, logps._replace(mask=np.zeros_like(logps.mask)), labels)
    np.testing.assert_array_equal(loss, 0)
    np.testing.assert_array_equal(gradient, 0)


def test_every_term_says_truly_whether_it_reads_the_reference(case, pairs32):
    logps, labels = pairs32
    # Opposite moves on the two branches, so that a term cannot cancel them.
    ref = np.array(logps.ref)
    ref[:, 0] += 0.5
    ref[:, 1] -= 0.5
    changed = evaluate(case, logps._replace(ref=ref), labels)[0] != evaluate(case, *pairs32)[0]
    reads = name_of(case) not in objectives.WITHOUT_REFERENCE and "by_head" not in case
    assert changed.all() if reads else not changed.any()
    objective = objective_of(case)
    assert objective.needs_reference == (reads or objective.needs_kl)


def test_every_term_says_truly_whether_it_reads_the_divergence(case, pairs32):
    logps, labels = pairs32
    moved = types.TokenKL(*(np.float32(values * [[[2.0]], [[3.0]]]) for values in logps.kl))
    changed = evaluate(case, logps._replace(kl=moved), labels)[0] != evaluate(case, *pairs32)[0]
    assert changed.all() if objective_of(case).needs_kl else not changed.any()


def test_every_term_says_truly_whether_it_reads_js_and_steps(case, pairs32):
    logps, labels = pairs32
    before = evaluate(case, *pairs32)[0]
    other = np.float32([0, 0, 0.3, -0.3])[None, :, None] + logps.js  # another branch is farthest
    changed = evaluate(case, logps._replace(js=other), labels)[0] != before
    assert changed.any() if objective_of(case).needs_js else not changed.any()
    steps = logps.steps._replace(similarity=0.5 * logps.steps.similarity)
    changed = evaluate(case, logps._replace(steps=steps), labels)[0] != before
    assert changed.all() if objective_of(case).steps else not changed.any()


def test_every_term_says_truly_whether_it_reads_rewards(case, pairs32):
    logps, labels = pairs32
    rewards = np.array(labels.rewards)
    rewards[:, :2] = rewards[:, 1::-1]  # another order, for terms that read nothing else
    rewards[:, 0, 1] += 0.25
    moved = labels._replace(rewards=rewards)
    changed = evaluate(case, logps, moved)[0] != evaluate(case, *pairs32)[0]
    assert changed.all() if objective_of(case).needs_rewards else not changed.any()


def test_every_term_says_truly_whether_it_reads_the_axis(case, pairs32):
    logps, labels = pairs32
    moved = labels._replace(axis=np.int32([1, 1]))
    changed = evaluate(case, logps, moved)[0] != evaluate(case, *pairs32)[0]
    assert changed.all() if objective_of(case).needs_axis else not changed.any()


def test_every_term_says_truly_whether_it_reads_the_margin(case, pairs32):
    logps, labels = pairs32
    moved = labels._replace(margin=np.float32([0.3, -0.3]))
    changed = evaluate(case, logps, moved)[0] != evaluate(case, *pairs32)[0]
    assert changed.all() if name_of(case) in objectives.READS_MARGIN else not changed.any()


def test_every_term_carries_no_gradient_into_the_rewards(case, pairs32):
    np.testing.assert_array_equal(evaluate(case, *pairs32)[3], 0)


def test_every_term_ignores_branches_that_it_does_not_name(case, pairs32):
    logps, labels = pairs32
    mask = np.array(logps.mask)
    mask[:, [n not in named(objective_of(case)) for n in range(4)]] = 0
    found = evaluate(case, logps._replace(mask=mask), labels)[0]
    np.testing.assert_array_equal(found, evaluate(case, *pairs32)[0])


def test_every_term_weighs_tokens_as_the_mask_would(case, pairs32):
    if "spans" in CASES[case].get("with", {}):
        return  # gives weights of its own
    logps, labels = pairs32
    weights = np.linspace(0.5, 2.0, logps.mask.size, dtype=np.float32).reshape(logps.mask.shape)
    by_weight = evaluate(case, logps._replace(weights=weights), labels)
    by_mask = evaluate(case, logps._replace(mask=logps.mask * weights), labels)
    for found, expected in zip((by_weight[0], by_weight[2]), (by_mask[0], by_mask[2]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_every_term_is_finite_where_no_token_of_a_branch_has_weight(case, pairs32):
    logps, labels = pairs32
    weights = np.ones_like(logps.mask)
    weights[0, 0] = weights[1, :2] = 0
    loss, metrics, gradient, _ = evaluate(case, logps._replace(weights=weights), labels)
    assert np.isfinite(loss).all()
    assert np.isfinite(gradient).all()
    assert all(np.isfinite(value).all() for value in metrics.values())


def with_weights(spec, weights):
    """The spec, and that of its modifiers, under other weights."""
    around = {name: with_weights(knobs, weights) for name, knobs in spec.get("with", {}).items()}
    own = {"weights": weights} if "weights" in spec else {}
    return {**spec, **own, **({"with": around} if around else {})}


@pytest.mark.parametrize(
    "case", sorted(c for c in CASES if with_weights(CASES[c], "prompt") != CASES[c])
)
def test_weights_that_prompts_state_act_row_by_row(case, make_pairs):
    logps, labels = make_pairs(np.float32)
    rows = np.float32([[0.5, 0.2, 0.3], [0.1, 0.3, 0.6]])

    def losses(weights, labels):
        objective = build({"it": {"term": name_of(case), **with_weights(CASES[case], weights)}})
        assert objective.needs_preference == (weights == "prompt")
        return np.asarray(loss_of(objective, logps, labels))

    stated = losses("prompt", labels._replace(preference=rows))
    expected = [losses(weights.tolist(), labels)[b] for b, weights in enumerate(rows)]
    np.testing.assert_allclose(stated, expected, rtol=1e-5)


def test_weights_of_prompts_need_prompts_that_state_them(pairs32):
    objective = build({"soft": {**WEIGHTED, "weights": "prompt"}})
    with pytest.raises(ValueError, match=r"the data state none; set config\.data\.weights"):
        loss_of(objective, *pairs32)
    with pytest.raises(ValueError, match=r"'promt'; it must be one of prompt\. Did you mean"):
        build({"soft": {**WEIGHTED, "weights": "promt"}})


@pytest.mark.parametrize("name", sorted(objectives.OBJECTIVES))
def test_every_term_leaves_the_reserved_knobs_alone(name):
    knobs = inspect.signature(objectives.OBJECTIVES[name]).parameters
    assert not {"term", "weight", "with"} & knobs.keys()


def test_a_sweep_over_numbers_compiles_once(pairs32):
    traces = []
    first = {**PAIR, "with": {"reward_margin": {"weights": WEIGHTS}}}
    objective = build({**MPO, "dpo": first, "modpo": SPECS["modpo"]})

    def step(knobs, state, logps, labels):
        traces.append(1)
        return objective(knobs, state, logps, labels)

    jitted = jax.jit(step)
    for i in range(1, 17):
        pair = {**PAIR, "beta": 0.05 * i}
        around = {"with": {"reward_margin": {"weights": [0.1 * i, 0.2, 0.3], "scale": 0.1 * i}}}
        spec = {
            "dpo": {**pair, **around, "weight": 0.1 * i, "label_smoothing": 0.05 * i},
            "bco": {**pair, "weight": 0.2},
            "nll": {"on": "chosen", "weight": 1 / i},
            "modpo": {**pair, "weights": dict(zip(AXES, (0.1 * i, 0.2, 0.3)))},
        }
        other = build(spec)
        found = jitted(other.knobs, other.init_state(), *pairs32)[0]
        if i in (1, 16):
            np.testing.assert_allclose(found, loss_of(other, *pairs32), rtol=1e-6)
    assert len(traces) == 1
    assert jitted._cache_size() == 1


def test_knobs_are_float32_arrays():
    knobs = build({"modpo": {**SPECS["modpo"], "weight": 2}}).knobs
    assert {leaf.dtype for leaf in jax.tree.leaves(knobs)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(knobs["modpo"]["weights"], np.float32([0.5, 0.3, 0.2]))
    assert knobs["modpo"]["weight"] == 2


def test_weights_over_axes_by_name_equal_those_in_order():
    named = build(
        {"modpo": {**PAIR, "weights": {"format": 0.2, "correctness": 0.5, "grounding": 0.3}}}
    )
    np.testing.assert_array_equal(
        named.knobs["modpo"]["weights"], build({"modpo": SPECS["modpo"]}).knobs["modpo"]["weights"]
    )


@pytest.mark.parametrize(
    ("mean", "count", "delta", "expected"),
    [
        (0.0, 0, "running", [1.9543654958, 1.4486878788]),
        (0.03, 1, "running", [1.9543854849, 1.4486778895]),
        (0.03, 1, "none", [1.9543555009, 1.4487078570]),
    ],
)
def test_mpo_by_hand(pairs, close, mean, count, delta, expected):
    dtype = pairs[0].policy.dtype
    objective = build({**MPO, "bco": {**MPO["bco"], "delta": delta}})
    # The numbers as the test's precision has them: 0.1 in float32 is 1.5e-8 off.
    knobs = {
        "dpo": {"weight": 0.8, "beta": 0.1, "label_smoothing": 0.0},
        "bco": {"weight": 0.2, "beta": 0.1},
        "nll": {"weight": 1.0},
    }
    knobs = jax.tree.map(lambda value: np.asarray(value, dtype), knobs)
    state = {"bco": objectives.bco.Baseline(np.asarray(mean, dtype), np.asarray(count, dtype))}
    loss, metrics, after = objective(knobs, state, *pairs)
    close(loss, expected)
    close(metrics["loss/dpo"], [0.6491593390, 0.7602581947])
    assert after["bco"].count == count + 1


def test_mpo_as_configured_by_hand(pairs32):
    objective = build(MPO)
    np.testing.assert_allclose(
        loss_of(objective, *pairs32), [1.9543654958, 1.4486878788], atol=2e-6
    )
    whole = build({**MPO, "nll": {"on": "chosen", "reduce": "batch_tokens"}})
    np.testing.assert_allclose(loss_of(whole, *pairs32).mean(), 1.7631933540, atol=2e-6)


def test_the_instances_weight_multiplies_the_whole_loss(pairs32):
    logps, labels = pairs32
    objective = build({"dpo": PAIR})
    weighted = labels._replace(weight=np.float32([0.5, 2.0]))
    np.testing.assert_allclose(
        loss_of(objective, logps, weighted), [0.3245796695, 1.5205163894], atol=2e-6
    )
    _, metrics, _ = objective(objective.knobs, {}, logps, weighted)
    np.testing.assert_allclose(metrics["loss/dpo"], [0.6491593390, 0.7602581947], atol=2e-6)


def test_two_entries_of_one_term_add_up(pairs32):
    objective = build(
        {
            "text": {**PAIR, "term": "dpo"},
            "visual": {**PAIR, "term": "dpo", "lose": "chosen@corrupted"},
        }
    )
    np.testing.assert_allclose(
        loss_of(objective, *pairs32), [1.3079188946, 1.4584178752], atol=2e-6
    )
    _, metrics, _ = objective(objective.knobs, objective.init_state(), *pairs32)
    assert {"loss/text", "loss/visual", "text/logit", "visual/logit"} <= metrics.keys()
    # The generic metrics are those of the first pair.
    np.testing.assert_allclose(metrics["rewards/margins"], [0.09, -0.13], atol=2e-6)


def test_state_is_carried_from_step_to_step(pairs32):
    objective = build(MPO)
    step = jax.jit(lambda state: objective(objective.knobs, state, *pairs32)[2])
    state = step(step(objective.init_state()))
    assert jax.tree.structure(state) == jax.tree.structure(objective.init_state())
    np.testing.assert_allclose(state["bco"].mean, 0.01, atol=1e-7)
    assert state["bco"].count == 2


def test_the_state_given_is_not_changed(pairs32):
    objective = build(MPO)
    state = objective.init_state()
    objective(objective.knobs, state, *pairs32)
    assert state["bco"].count == 0


def test_the_baseline_over_devices_is_that_of_the_global_batch(pairs32):
    logps, labels = jax.tree.map(
        lambda x: np.concatenate([x, 0.5 * x] * 4).astype(x.dtype), pairs32
    )
    logps = logps._replace(mask=(logps.mask > 0).astype(np.float32))
    labels = labels._replace(axis=np.zeros(16, np.int32))
    objective = build({**MPO, "nll": {"on": "chosen", "reduce": "batch_tokens"}})
    one = objective(objective.knobs, objective.init_state(), logps, labels)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    many = jax.jit(objective)(
        objective.knobs, objective.init_state(), *jax.device_put((logps, labels), rows)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, many)


def test_only_terms_with_a_reference_ask_for_it():
    assert build(MPO).needs_reference
    assert not build({"nll": {"on": "chosen"}}).needs_reference
    assert not build(MPO).needs_rewards
    assert build({"modpo": SPECS["modpo"]}).needs_rewards
    assert build({"dpo": PAIR}).init_state() == {}


def test_check_names_the_pair_that_modpo_cannot_weigh(pairs32):
    objective = build({"modpo": {**PAIR, "weights": [0.5, 0.5, 0.0]}})
    with pytest.raises(ValueError, match="Row 1 is ordered by axis 2"):
        objective.check(pairs32[1])
    build(MPO).check(pairs32[1])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "config.objective is empty"),
        ({"dpo": 0.5}, "config.objective.dpo is 0.5; it must be a mapping"),
        ({"dpoo": PAIR}, "config.objective.dpoo.* 'dpoo'.*Did you mean 'dpo'"),
        ({"a": {**PAIR, "term": "modp"}}, "config.objective.a.* 'modp'.*Did you mean 'modpo'"),
        ({"dpo": {**PAIR, "betta": 1}}, "config.objective.dpo.*'betta'.*Did you mean 'beta'"),
        ({"dpo": {"win": "chosen", "beta": 1}}, "config.objective.dpo.* needs the knob.* lose"),
        (
            {"dpo": {**PAIR, "lose": "rejectd"}},
            "config.objective.dpo.lose is 'rejectd'.*Did you mean 'rejected'",
        ),
        ({"dpo": {**PAIR, "lose": 1}}, "config.objective.dpo.lose is 1; it must be the name"),
        (
            {"dpo": {**PAIR, "lose": "chosen@clean"}},
            "config.objective.dpo.lose and config.objective.dpo.win are both 'chosen",
        ),
        ({"dpo": {**PAIR, "beta": 0.0}}, "config.objective.dpo.beta is 0.0; it must be > 0"),
        ({"dpo": {**PAIR, "beta": -0.1}}, "config.objective.dpo.beta is -0.1; it must be > 0"),
        ({"dpo": {**PAIR, "beta": 1e-60}}, "config.objective.dpo.beta is 1e-60"),
        ({"dpo": {**PAIR, "beta": 1e60}}, "config.objective.dpo.beta is 1e"),
        ({"dpo": {**PAIR, "beta": float("nan")}}, "config.objective.dpo.beta is nan"),
        ({"dpo": {**PAIR, "beta": True}}, "config.objective.dpo.beta is True; .* a number"),
        ({"dpo": {**PAIR, "beta": "0.1"}}, "config.objective.dpo.beta is '0.1'; .* a number"),
        ({"dpo": {**PAIR, "label_smoothing": 1.0}}, "dpo.label_smoothing is 1.0; .*\\[0, 1\\)"),
        ({"dpo": {**PAIR, "weight": -1}}, "config.objective.dpo.weight is -1; it must be >= 0"),
        ({"dpo": {**PAIR, "weight": float("inf")}}, "config.objective.dpo.weight is inf"),
        (
            {"modpo": {**PAIR, "weights": {"corectness": 1.0}}},
            "modpo.weights has no axis 'corectness'.*Did you mean 'correctness'",
        ),
        (
            {"modpo": {**PAIR, "weights": {"correctness": 1.0, "format": 1.0}}},
            "config.objective.modpo.weights lacks grounding",
        ),
        ({"modpo": {**PAIR, "weights": [1.0]}}, "modpo.weights has 1 numbers for 3 axes"),
        ({"modpo": {**PAIR, "weights": [1, -1, 0]}}, "modpo.weights.grounding is -1"),
        ({"modpo": {**PAIR, "weights": [0, 0, 0]}}, "modpo.weights is 0 on every axis"),
        ({"modpo": {**PAIR, "weights": 0.5}}, "modpo.weights is 0.5; it must map axes"),
        (
            {"nll": {"on": "chosen", "reduce": "batch_token"}},
            "config.objective.nll.reduce is 'batch_token'.*Did you mean 'batch_tokens'",
        ),
        ({"bco": {**PAIR, "delta": "runing"}}, "bco.delta is 'runing'.*Did you mean 'running'"),
        ({"anchor": {"on": "chosen", "beta": 1, "sign": 0}}, "anchor.sign is 0; .* one of 1, -1"),
        ({"robust": {**PAIR, "flip_rate": 0.5}}, "robust.flip_rate is 0.5; .* \\[0, 0.5\\)"),
        ({"exo_pair": {**PAIR, "epsilon": 0}}, "exo_pair.epsilon is 0; .* \\(0, 1\\)"),
        (
            {"pro": {**LIST, "over": ["chosen", "rejectd"]}},
            "pro.over.1 is 'rejectd'.*Did you mean 'rejected'",
        ),
        (
            {"pro": {**LIST, "over": ["chosen", "chosen@clean"]}},
            "pro.over is .*a list holds each branch once",
        ),
        (
            {"pro": {**LIST, "over": "response_*"}},
            "pro.over is 'response_\\*', which fits 0 branches; .*at least two of chosen, rejected",
        ),
        ({"pro": {**LIST, "over": 3}}, "pro.over is 3; it must be a list of branches"),
        (
            {"ranklist": {**LIST, "beta": 1, "skips": 0}},
            "ranklist.skips is 0; it must be >= 1",
        ),
        ({"ranklist": {**LIST, "beta": 1, "skips": 1.5}}, "ranklist.skips is 1.5; .* type int"),
        ({"dpo": {**PAIR, "with": "wpo"}}, "dpo.with is 'wpo'; it must map modifiers"),
        ({"dpo": {**PAIR, "with": {"wpo": True}}}, "dpo.with.wpo is True; it must be a mapping"),
        ({"dpo": {**PAIR, "with": {"wp": {}}}}, "dpo.with: .*'wp'.*Did you mean 'wpo'"),
        ({"dpo": {**PAIR, "with": {"ld": {}}}}, "dpo.with: .*'ld' needs the knob.* tail"),
        ({"dpo": {**PAIR, "with": {"ld": {"tail": 2}}}}, "dpo.with.ld.tail is 2; .* \\[0, 1\\]"),
        (
            {"dpo": {**PAIR, "with": {"wpo": {"win": "chosen"}}}},
            "dpo.with.wpo takes win and lose from its term",
        ),
        ({"nll": {"on": "chosen", "with": {"wpo": {}}}}, "nll has no win and lose"),
        (
            {"dpo_farthest": {"win": "chosen", "over": ["rejected", "chosen@other"], "beta": 1}},
            "dpo_farthest.over names 'rejected'; it must name 'chosen' under other contexts",
        ),
        (
            {"dpo_farthest": {"win": "chosen@other", "over": "chosen*", "beta": 1}},
            "dpo_farthest.win is 'chosen@other'; it must be read under the clean context",
        ),
        ({"tree_rank": {**LIST, "beta": 1, "steps": 0}}, "tree_rank.steps is 0; it must be >= 1"),
        ({"bt": {**SIDES, "head": "scor"}}, "bt.head is 'scor'.*Did you mean 'score'"),
        ({"bt": {**SIDES, "head": "mask"}}, "bt.head is 'mask'.* per token; .* per branch"),
        ({"bt": {**SIDES, "head": "scores"}}, "bt: head has 3 output.*; bt needs 1"),
        ({"regression": {"on": "chosen", "head": "score"}}, "regression: head has 1 .* needs 3"),
        (
            {"bt_mixture": {**SIDES, "head": "scores", "router": "score"}},
            "router has 1 outputs for 3 of head",
        ),
        ({"degree": {"over": "all", "head": "scores"}}, "head has 3 outputs for 4 degrees"),
        (
            {"bt_user": {**SIDES, "head": "scores", "prototypes": "router", "users": "users"}},
            "prototypes has 3 outputs; it needs 2 .* times 3",
        ),
        (
            {"dpo": {**PAIR, "with": {"by_head": {"head": "scores"}}}},
            "dpo.with.by_head: head has 3 output",
        ),
        (
            {"apo_zero": {**PAIR, "with": {"length_margin": {"per_token": 0.1}}}},
            "apo_zero does not read.*one of bt, clipped_dpo",
        ),
    ],
)
def test_build_names_what_is_wrong(spec, message):
    with pytest.raises(ValueError, match=message):
        build(spec)


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ("all", (0, 1, 2, 3)),
        ("chosen*", (0, 2, 3)),
        (["rejected", "chosen"], (1, 0)),
        (("chosen@corrupted", "chosen"), (2, 0)),
    ],
)
def test_a_list_of_branches_by_name_or_pattern(over, expected):
    assert build({"pro": {**LIST, "over": over}}).terms[0].static["over"] == expected


def test_modpo_needs_reward_axes():
    with pytest.raises(ValueError, match=r"modpo.weights needs reward axes.*config.data.axes"):
        objectives.build({"modpo": SPECS["modpo"]}, LAYOUT, ())
