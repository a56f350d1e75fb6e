"""Objectives against TRL 1.16: its own `DPOTrainer._compute_loss`, values and gradients.

The trainer's method runs unchanged on a stand-in for the trainer that holds only what the method
reads, with a model that hands out given log-probabilities: so the loss alone is compared.
"""

import collections
import types as python_types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import objectives, types

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl")

PAIR = {"win": "chosen", "lose": "rejected"}
LAYOUT = types.Layout.of(("chosen", "rejected"))
B, PROMPT, T = 5, 3, 7


@pytest.fixture
def pairs():
    """Random pairs with responses of 1 to 7 tokens, as (logps, labels)."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, T + 1, (B, 2))
    mask = (np.arange(T) < lengths[..., None]).astype(np.float32)
    policy = -rng.exponential(1.5, (B, 2, T)).astype(np.float32) * mask
    ref = policy + rng.normal(0, 1.0, (B, 2, T)).astype(np.float32) * mask
    labels = types.Labels(
        rewards=np.zeros((B, 2, 0), np.float32),
        weight=np.ones(B, np.float32),
        margin=np.zeros(B, np.float32),
        axis=np.zeros(B, np.int32),
    )
    return types.Logps(policy, ref, mask), labels


def trl_loss(logps, *, losses, weights=None, beta=0.1, label_smoothing=0.0, **more):
    """(loss, d loss / d policy [B, N, T], metrics) from TRL's own code.

    more: divergence, alpha, ld_alpha, use_weighting and discopop_tau of its configuration.
    """

    def rows(x):  # [B, N, T] -> [N * B, PROMPT + T], chosen before rejected
        flat = np.swapaxes(x, 0, 1).reshape(2 * B, T)
        return np.pad(flat, ((0, 0), (PROMPT, 0)))

    policy = torch.tensor(rows(logps.policy)[:, 1:], requires_grad=True)  # shifted by one
    mask = torch.tensor(rows(logps.mask)).long()
    ref = torch.tensor(rows(logps.ref * logps.mask)[:, 1:])
    nothing = torch.zeros(2 * B, PROMPT + T - 1)
    outputs = python_types.SimpleNamespace(
        log_probs=policy * mask[:, 1:],
        entropy=nothing,
        mean_logits=nothing,
        is_top1=nothing.bool(),
        log_sum_sq_probs=nothing,  # WPO's alignment needs whole distributions: taken out
    )
    model = torch.nn.Module()
    model.is_gradient_checkpointing = False
    trainer = python_types.SimpleNamespace(
        model=model,
        ref_model=lambda **_: python_types.SimpleNamespace(log_probs=ref),
        args=python_types.SimpleNamespace(
            gradient_checkpointing_kwargs=None, discopop_tau=more.get("discopop_tau", 0.05)
        ),
        accelerator=python_types.SimpleNamespace(
            device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x
        ),
        aux_loss_enabled=False,
        ld_alpha=more.get("ld_alpha"),
        precompute_ref_logps=False,
        f_divergence_type=more.get("divergence", "reverse_kl"),
        f_alpha_divergence_coef=more.get("alpha", 1.0),
        use_weighting=more.get("use_weighting", False),
        loss_types=losses,
        loss_weights=weights or [1.0] * len(losses),
        beta=beta,
        label_smoothing=label_smoothing,
        _metrics={"train": collections.defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
    }
    loss = trl.DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    loss.backward()
    gradient = policy.grad.numpy()[:, PROMPT - 1 :].reshape(2, B, T).swapaxes(0, 1)
    return loss.item(), gradient, trainer._metrics["train"]


def our_loss(logps, labels, spec):
    """The same from rubric_jax, averaged over the batch as the step does."""
    objective = objectives.build(spec, LAYOUT)

    def mean(policy):
        moved = logps._replace(policy=policy)
        loss, logged, _ = objective(objective.knobs, objective.init_state(), moved, labels)
        return loss.mean(), logged

    (loss, logged), gradient = jax.value_and_grad(mean, has_aux=True)(jnp.asarray(logps.policy))
    return float(loss), np.asarray(gradient), logged


def _case(loss, term, beta=0.1, trl=None, **ours):
    """One loss of TRL and the entry that has the same numbers here."""
    return {"losses": [loss], "beta": beta, **(trl or {})}, {
        term: {**PAIR, "beta": beta, **ours},
    }


def _divergence(loss, term, kind, **ours):
    kind = {"divergence": kind, **({"alpha": 0.5} if kind == "alpha_divergence" else {})}
    # Its sigmoid does not read the smoothing, its exo_pair needs one: our epsilon's default.
    return _case(loss, term, 0.3, {**kind, "label_smoothing": 1e-3}, **kind, **ours)


SMOOTH = {"label_smoothing": 0.2}
LIMIT = {"divergence": "alpha_divergence", "alpha": 1.0}
CASES = {
    "sigmoid": _case("sigmoid", "dpo"),
    "sigmoid with a large beta": _case("sigmoid", "dpo", 2.0),
    "hinge": _case("hinge", "hinge"),
    "hinge where some are done": _case("hinge", "hinge", 2.0),
    "ipo": _case("ipo", "ipo", tokens="mean"),
    "exo_pair": _case("exo_pair", "exo_pair", 0.5, {"label_smoothing": 1e-3}),
    "exo_pair, epsilon": _case("exo_pair", "exo_pair", 0.5, SMOOTH, epsilon=0.2),
    "nca_pair": _case("nca_pair", "nca_pair", 0.5),
    "robust": _case("robust", "robust", 0.5, SMOOTH, flip_rate=0.2),
    "bco_pair": _case("bco_pair", "bco", 0.3, delta="none"),
    "sppo_hard": _case("sppo_hard", "sppo_hard", 0.3),
    "aot": _case("aot", "aot", 0.5, SMOOTH, **SMOOTH),
    "aot_unpaired": _case("aot_unpaired", "aot_unpaired", 0.5, SMOOTH, **SMOOTH),
    "apo_zero": _case("apo_zero", "apo_zero", 0.5),
    "apo_down": _case("apo_down", "apo_down", 0.5),
    "discopop": _case("discopop", "discopop", 0.5),
    "discopop, tau": _case("discopop", "discopop", 0.5, {"discopop_tau": 0.5}, tau=0.5),
    "sft": ({"losses": ["sft"]}, {"nll": {"on": "chosen", "reduce": "batch_tokens"}}),
    "sigmoid_norm": _case("sigmoid_norm", "sigmoid_norm", 2.0),
    **{
        f"{loss}, {kind}": _divergence(loss, term, kind, **ours)
        for loss, term, ours in (
            ("sigmoid", "dpo", {}),
            ("sigmoid_norm", "sigmoid_norm", {}),
            ("hinge", "hinge", {}),
            ("ipo", "ipo", {"tokens": "mean"}),
            ("exo_pair", "exo_pair", {}),
            ("robust", "robust", {"flip_rate": 1e-3}),
            ("discopop", "discopop", {}),
        )
        for kind in ("forward_kl", "js_divergence", "alpha_divergence")
    },
    "alpha_divergence at 1": _case("sigmoid", "dpo", 0.3, LIMIT, **LIMIT),
    **{
        f"{loss} with ld_alpha": _case(
            loss, term, 0.5, {"ld_alpha": 0.3}, **{"with": {"ld": {"tail": 0.3}}}, **ours
        )
        for loss, term, ours in (
            ("sigmoid", "dpo", {}),
            ("nca_pair", "nca_pair", {}),
            ("bco_pair", "bco", {"delta": "none"}),
            ("aot", "aot", {}),
        )
    },
    **{
        f"{loss} with WPO": _case(
            loss, term, 0.5, {"use_weighting": True}, **{"with": {"wpo": {}}}, **ours
        )
        for loss, term, ours in (
            ("sigmoid", "dpo", {}),
            ("ipo", "ipo", {"tokens": "mean"}),
            ("apo_zero", "apo_zero", {}),
        )
    },
    "WPO and ld_alpha": _case(
        "sigmoid",
        "dpo",
        0.5,
        {"use_weighting": True, "ld_alpha": 0.3},
        **{"with": {"ld": {"tail": 0.3}, "wpo": {}}},
    ),
    "mpo": (
        {"losses": ["sigmoid", "bco_pair", "sft"], "weights": [0.8, 0.2, 1.0], "beta": 0.1},
        {
            "dpo": {**PAIR, "weight": 0.8, "beta": 0.1},
            "bco": {**PAIR, "weight": 0.2, "beta": 0.1, "delta": "none"},
            "nll": {"on": "chosen", "reduce": "batch_tokens"},
        },
    ),
}
LOSSES = {
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"),
    *("aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
}


def test_every_loss_of_trl_has_a_case():
    assert {loss for theirs, _ in CASES.values() for loss in theirs["losses"]} == LOSSES


@pytest.mark.parametrize("case", CASES)
def test_objective_equals_trl(pairs, case):
    theirs, ours = CASES[case]
    expected, expected_gradient, _ = trl_loss(pairs[0], **theirs)
    found, gradient, _ = our_loss(*pairs, ours)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # discopop divides its logit by tau, and with it multiplies float32's rounding.
    least = 1e-5 * np.abs(expected_gradient).max() if "discopop" in case else 1e-9
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=least)
    assert np.abs(gradient[..., 0]).max() > 1e-3


def test_label_smoothing_equals_trls_aot_pair_by_pair(pairs):
    """TRL's `sigmoid` ignores label_smoothing; its `aot` has the formula, on sorted log-ratios."""
    logps, labels = pairs
    spec = {"dpo": {**PAIR, "beta": 0.5, "label_smoothing": 0.2}}
    for b in range(B):
        # One pair, repeated: sorting equal log-ratios changes nothing.
        one = jax.tree.map(lambda x, b=b: np.repeat(x[b : b + 1], B, axis=0), logps)
        expected, expected_gradient, _ = trl_loss(
            one, losses=["aot"], beta=0.5, label_smoothing=0.2
        )
        found, gradient, _ = our_loss(one, labels, spec)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-9)


def _total_and_mean(logps):
    """What TRL's reference-free losses take: log-probabilities of whole responses, per token."""
    totals = (logps.policy * logps.mask).sum(-1)
    return torch.tensor(totals), torch.tensor(totals / logps.mask.sum(-1))


def test_simpo_and_cpo_equal_trls(pairs):
    cpo = pytest.importorskip("trl.experimental.cpo")
    totals, means = _total_and_mean(pairs[0])
    trainer = python_types.SimpleNamespace(
        alpha=0.0,
        accelerator=python_types.SimpleNamespace(device="cpu"),
        beta=2.0,
        simpo_gamma=0.5,
        label_smoothing=0.0,
    )
    for kind, logps, term, knobs in (
        ("simpo", means, "simpo", {"gamma": 0.5}),
        ("sigmoid", totals, "cpo", {"nll_weight": 0.0}),
    ):
        trainer.loss_type = kind
        expected, _, _ = cpo.CPOTrainer.cpo_loss(trainer, logps[:, 0], logps[:, 1])
        found, _, _ = our_loss(*pairs, {term: {**PAIR, "beta": 2.0, **knobs}})
        np.testing.assert_allclose(found, expected.mean(), rtol=1e-5)


def test_orpo_equals_trls(pairs):
    orpo = pytest.importorskip("trl.experimental.orpo")
    _, means = _total_and_mean(pairs[0])
    trainer = python_types.SimpleNamespace(
        beta=0.3, accelerator=python_types.SimpleNamespace(device="cpu")
    )
    ratio = orpo.ORPOTrainer.odds_ratio_loss(trainer, means[:, 0], means[:, 1])[0]  # not negated
    found, _, _ = our_loss(*pairs, {"orpo": {**PAIR, "lam": 0.3}})
    np.testing.assert_allclose(found, (-means[:, 0] - ratio).mean(), rtol=1e-5)


def test_trls_robust_is_made_of_dpo_both_ways(pairs):
    """robust = ((1 - s) dpo(win, lose) - s dpo(lose, win)) / (1 - 2 s): not label smoothing."""
    expected, _, _ = trl_loss(pairs[0], losses=["robust"], label_smoothing=0.1)
    there, _, _ = our_loss(*pairs, {"dpo": {**PAIR, "beta": 0.1}})
    back, _, _ = our_loss(*pairs, {"dpo": {"win": "rejected", "lose": "chosen", "beta": 0.1}})
    np.testing.assert_allclose((0.9 * there - 0.1 * back) / 0.8, expected, rtol=1e-5)


def test_metrics_equal_trls_under_the_same_names(pairs):
    _, _, theirs = trl_loss(pairs[0], losses=["sigmoid"])
    _, _, ours = our_loss(*pairs, {"dpo": {**PAIR, "beta": 0.1}})
    for name in ("chosen", "rejected", "margins", "accuracies"):
        np.testing.assert_allclose(
            ours[f"rewards/{name}"].mean(), theirs[f"rewards/{name}"][0], rtol=1e-5
        )
    for name in ("logps/chosen", "logps/rejected"):
        np.testing.assert_allclose(ours[name].mean(), theirs[name][0], rtol=1e-5)
