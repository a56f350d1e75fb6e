"""What goes around a term, by hand: token weights, margins and factors."""

import numpy as np
import pytest

from rubric_jax import objectives, types
from rubric_jax.objectives import likelihood, modifiers, pairwise, reference_free

PAIR = {"win": 0, "lose": 1}
OMEGA = [[[2.5, 1.0, 1.0], [1.0, 2.5, 2.5, 1.0]], [[1.0, 2.0], [1.0, 1.0, 2.0]]]
SPAN = [[[0, 1, 1], [0, 1, 1, 0]], [[0, 1], [0, 0, 1]]]


def weigh(logps, weights):
    """The batch with token weights on chosen and rejected, different per side."""
    mask = np.array(logps.mask)
    for b, row in enumerate(weights):
        for n, tokens in enumerate(row):
            mask[b, n, : len(tokens)] = tokens
    return logps._replace(mask=mask)


@pytest.mark.parametrize(
    ("term", "weights", "knobs", "expected"),
    [
        (pairwise.dpo, OMEGA, {"beta": 0.1}, [0.6349461016, 0.7871917248]),
        (pairwise.sigmoid_norm, OMEGA, {"beta": 0.1}, [0.6818623751, 0.7188868159]),
        (pairwise.dpo, SPAN, {"beta": 0.1}, [0.6831971797, 0.7184596480]),
        (
            reference_free.simpo,
            OMEGA,
            {"beta": 5.0, "gamma": 2.5},
            [2.3681728625, 1.2530315078],
        ),
    ],
)
def test_token_weights_by_hand(pairs, close, term, weights, knobs, expected):
    logps, labels = pairs
    close(term(weigh(logps, weights), labels, **PAIR, **knobs)[0], expected)


def test_a_plain_term_beside_a_weighted_one_by_hand(pairs, close):
    logps, labels = pairs
    logps = weigh(logps, OMEGA)
    pair = reference_free.simpo(logps, labels, **PAIR, beta=5.0, gamma=2.5)[0]
    nll = likelihood.nll(*modifiers.unweighted(logps, labels), on=0)[0]
    close(pair + 2 * nll, [4.7015061959, 2.3530315078])


def test_token_weights_through_a_config(make_pairs):
    logps, labels = make_pairs(np.float32)
    pair = {"win": "chosen", "lose": "rejected"}
    objective = objectives.build(
        {
            "simpo": {**pair, "beta": 5.0, "gamma": 2.5},
            "nll": {"on": "chosen", "weight": 2.0, "with": {"unweighted": {}}},
        },
        types.Layout.of(("chosen", "rejected", "chosen@corrupted", "reference_answer")),
    )
    loss, _, _ = objective(objective.knobs, {}, weigh(logps, OMEGA), labels)
    np.testing.assert_allclose(loss, [4.7015061959, 2.3530315078], atol=2e-6)
    assert objective.needs_reference is False


def test_ld_weighs_the_tail_of_the_longer_response(pairs64):
    """Lengths 3 and 4, then 2 and 3: the last token of rejected counts a quarter."""
    logps, labels = pairs64
    seen, _ = modifiers.ld(logps, labels, **PAIR, tail=0.25)
    np.testing.assert_array_equal(seen.mask[0, :2], [[1, 1, 1, 0], [1, 1, 1, 0.25]])
    np.testing.assert_array_equal(seen.mask[1, :2], [[1, 1, 0, 0], [1, 1, 0.25, 0]])
    np.testing.assert_array_equal(seen.mask[:, 2:], logps.mask[:, 2:])
    # -0.5 + 0.75 * 0.4 and 0.9 - 0.75 * 0.2
    np.testing.assert_allclose(seen.ratio(1), [-0.2, 0.75], rtol=1e-9)


def test_ld_with_a_full_tail_changes_nothing(pairs64):
    seen, _ = modifiers.ld(*pairs64, **PAIR, tail=1.0)
    np.testing.assert_array_equal(seen.mask, pairs64[0].mask)


def test_ld_leaves_a_lone_side_alone(pairs64):
    logps, labels = pairs64
    mask = np.array(logps.mask)
    mask[:, 1] = 0
    seen, _ = modifiers.ld(logps._replace(mask=mask), labels, **PAIR, tail=0.25)
    np.testing.assert_array_equal(seen.mask, mask)


def test_length_margin_by_hand(pairs, close):
    """Chosen is one token shorter in both pairs: its logit loses 0.02."""
    logps, labels = pairs
    seen = modifiers.length_margin(weigh(logps, OMEGA), labels, **PAIR, per_token=0.02)[1]
    close(pairwise.dpo(logps, seen, **PAIR, beta=0.1)[1]["logit"], [0.07, -0.15])


def test_score_margin_by_hand(pairs, close):
    """0.3 * (0.9 - 0.4) = 0.15, subtracted after beta."""
    logps, labels = pairs
    rewards = np.zeros((2, 4, 1), logps.policy.dtype)
    rewards[:, 0], rewards[:, 1] = 0.9, 0.4
    knobs = {**PAIR, "weights": np.ones(1, logps.policy.dtype), "scale": 0.3}
    seen = modifiers.reward_margin(logps, labels._replace(rewards=rewards), **knobs)[1]
    close(pairwise.dpo(logps, seen, **PAIR, beta=0.1)[0], [0.7235971131, 0.8429153336])


def test_margins_add_up(pairs64):
    logps, labels = pairs64
    labels = labels._replace(margin=np.array([0.1, 0.2]))
    seen = modifiers.length_margin(logps, labels, **PAIR, per_token=0.02)[1]
    np.testing.assert_allclose(seen.margin, [0.12, 0.22], rtol=1e-9)


def test_wpo_by_hand(pairs64):
    """exp of the sum of mean log-probabilities: -7/6 - 1.05 and -0.55 - 17/15."""
    found = modifiers.wpo(*pairs64, **PAIR)
    np.testing.assert_allclose(found, np.exp([-7 / 6 - 1.05, -0.55 - 17 / 15]), rtol=1e-9)


def test_axis_weight_by_hand(pairs64):
    weights = np.array([0.5, 0.3, 0.2])
    np.testing.assert_allclose(modifiers.axis_weight(*pairs64, weights=weights), [0.5, 0.2])


def test_axis_weight_refuses_a_row_without_an_axis(pairs64):
    labels = pairs64[1]._replace(axis=np.array([0, -1]))
    pair = {"win": "chosen", "lose": "rejected", "beta": 0.1}
    around = {"with": {"axis_weight": {"weights": [0.5, 0.3, 0.2]}}}
    layout = types.Layout.of(("chosen", "rejected"))
    objective = objectives.build({"dpo": {**pair, **around}}, layout, ("a", "b", "c"))
    objective.check(pairs64[1])
    with pytest.raises(ValueError, match="Row 1 is ordered by axis -1, but there are 3 axes"):
        objective.check(labels)


def test_factors_multiply_the_loss_and_see_the_data_as_they_are(make_pairs):
    pairs32 = make_pairs(np.float32)
    layout = types.Layout.of(("chosen", "rejected", "chosen@corrupted", "reference_answer"))
    pair = {"win": "chosen", "lose": "rejected", "beta": 0.1}

    def losses(**around):
        objective = objectives.build({"dpo": {**pair, "with": around}}, layout, ("a", "b", "c"))
        return np.asarray(objective(objective.knobs, {}, *pairs32)[0])

    weights, ld = {"weights": [0.5, 0.3, 0.2]}, {"tail": 0.25}
    wpo = np.asarray(modifiers.wpo(*pairs32, **PAIR))
    np.testing.assert_allclose(losses(wpo={}), wpo * losses(), rtol=1e-6)
    np.testing.assert_allclose(losses(ld=ld, wpo={}), wpo * losses(ld=ld), rtol=1e-6)
    both = losses(axis_weight=weights, consistent={"essential": [0, 0, 1]})
    np.testing.assert_allclose(both, np.array([0.5, 0.2]) * losses(), rtol=1e-6)
    assert (losses(consistent={"essential": [1, 1, 0]}) == 0).all()
