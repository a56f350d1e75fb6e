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


def trl_loss(logps, *, losses, weights=None, beta=0.1, label_smoothing=0.0):
    """(loss, d loss / d policy [B, N, T], metrics) from TRL's own code."""

    def rows(x, first=0.0):  # [B, N, T] -> [N * B, PROMPT + T], chosen before rejected
        flat = np.swapaxes(x, 0, 1).reshape(2 * B, T)
        return np.pad(flat, ((0, 0), (PROMPT, 0)), constant_values=first)

    policy = torch.tensor(rows(logps.policy)[:, 1:], requires_grad=True)  # shifted by one
    mask = torch.tensor(rows(logps.mask)).long()
    ref = torch.tensor(logps.ref * logps.mask).sum(-1)
    nothing = torch.zeros(2 * B, PROMPT + T - 1)
    outputs = python_types.SimpleNamespace(
        log_probs=policy * mask[:, 1:],
        entropy=nothing,
        mean_logits=nothing,
        is_top1=nothing.bool(),
    )
    trainer = python_types.SimpleNamespace(
        model=torch.nn.Module(),
        accelerator=python_types.SimpleNamespace(
            device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x
        ),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        use_weighting=False,
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
        "ref_chosen_logps": ref[:, 0],
        "ref_rejected_logps": ref[:, 1],
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


CASES = {
    "sigmoid": (
        {"losses": ["sigmoid"], "beta": 0.1},
        {"dpo": {**PAIR, "beta": 0.1}},
    ),
    "sigmoid with a large beta": (
        {"losses": ["sigmoid"], "beta": 2.0},
        {"dpo": {**PAIR, "beta": 2.0}},
    ),
    "bco_pair": (
        {"losses": ["bco_pair"], "beta": 0.3},
        {"bco": {**PAIR, "beta": 0.3, "delta": "none"}},
    ),
    "sft": (
        {"losses": ["sft"]},
        {"nll": {"on": "chosen", "reduce": "batch_tokens"}},
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


@pytest.mark.parametrize("case", CASES)
def test_objective_equals_trl(pairs, case):
    theirs, ours = CASES[case]
    expected, expected_gradient, _ = trl_loss(pairs[0], **theirs)
    found, gradient, _ = our_loss(*pairs, ours)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-9)
    assert np.abs(gradient[..., 0]).max() > 1e-3


def test_label_smoothing_equals_trls_aot_pair_by_pair(pairs):
    """TRL's `sigmoid` ignores label_smoothing; its `aot` has the formula, on sorted log-ratios."""
    logps, labels = pairs
    spec = {"dpo": {**PAIR, "beta": 0.5, "label_smoothing": 0.2}}
    for b in range(B):
        # One pair, repeated: sorting equal log-ratios changes nothing.
        one = types.Logps(*(np.repeat(x[b : b + 1], B, axis=0) for x in logps))
        expected, expected_gradient, _ = trl_loss(
            one, losses=["aot"], beta=0.5, label_smoothing=0.2
        )
        found, gradient, _ = our_loss(one, labels, spec)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-9)


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
