"""What goes around a term, by hand: token weights, margins and factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import objectives, types
from rubric_jax.objectives import modifiers, pairwise, reference_free

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


def through_spans(spec, logps, labels):
    layout = types.Layout.of(("chosen", "rejected", "chosen@corrupted", "reference_answer"))
    objective = objectives.build({"it": {**spec, "win": "chosen", "lose": "rejected"}}, layout)
    assert objective.spans == ("",)
    return np.asarray(objective(objective.knobs, {}, logps, labels)[0])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [  # the weights of OMEGA, as the mask has them above
        ({"term": "dpo", "beta": 0.1, "with": {"spans": {}}}, [0.6349461016, 0.7871917248]),
        (
            {"term": "sigmoid_norm", "beta": 0.1, "with": {"spans": {}}},
            [0.6818623751, 0.7188868159],
        ),
    ],
)
def test_spans_by_hand(pairs32, spec, expected):
    np.testing.assert_allclose(through_spans(spec, *pairs32), expected, atol=2e-6)


def test_weights_inside_and_outside_of_spans_by_hand(pairs64):
    """Row 0: chosen 2 x 2.5 (0.2), rejected 5 (-0.3 + 0.3); outside 0.5 of the other tokens."""
    logps, labels = pairs64
    seen, _ = modifiers.spans(logps, labels, inside=2.0, outside=0.5)
    np.testing.assert_allclose(seen.weights[0, :2], [[5, 0.5, 0.5, 0.5], [0.5, 5, 5, 0.5]])
    np.testing.assert_allclose(seen.ratio(0)[0], 5 * 0.2 + 0.5 * (0.4 - 0.2), rtol=1e-9)
    np.testing.assert_allclose(seen.ratio(1)[0], 0.5 * (-0.1 - 0.4), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(seen.mask, logps.mask)


def test_where_no_span_stands_only_the_others_gradient_is_left(pairs64):
    """Differing spans alone (outside 0): without any the loss is log 2, and not absent."""
    logps, labels = pairs64
    table = np.array(logps.spans[""])
    table[0, :2] = types.OUTSIDE
    table[1, 0] = types.OUTSIDE
    seen, _ = modifiers.spans(logps._replace(spans={"": table}), labels, outside=0.0)
    loss, _ = pairwise.dpo(seen, labels, **PAIR, beta=0.1)
    # Row 1 keeps the last token of rejected, twice: log-ratio 2 x 0.2.
    np.testing.assert_allclose(loss, np.log1p(np.exp([0.0, 0.1 * 0.4])), rtol=1e-9)
    np.testing.assert_array_equal(seen.present(0, 1), [1, 1])

    def total(shift):
        moved = np.asarray(logps.policy) + shift[:, :, None]
        return pairwise.dpo(seen._replace(policy=moved), labels, **PAIR, beta=0.1)[0].sum()

    slopes = jax.grad(total)(jnp.zeros((2, 4)))
    np.testing.assert_array_equal(slopes[:, 0], [0, 0])
    assert slopes[0, 1] == 0
    assert slopes[1, 1] > 0


def test_a_plain_term_beside_a_weighted_one_by_hand(make_pairs):
    logps, labels = make_pairs(np.float32)
    pair = {"win": "chosen", "lose": "rejected"}
    objective = objectives.build(
        {
            "simpo": {**pair, "beta": 5.0, "gamma": 2.5, "with": {"spans": {}}},
            "nll": {"on": "chosen", "weight": 2.0},
        },
        types.Layout.of(("chosen", "rejected", "chosen@corrupted", "reference_answer")),
    )
    loss, _, _ = objective(objective.knobs, {}, logps, labels)
    np.testing.assert_allclose(loss, [4.7015061959, 2.3530315078], atol=2e-6)
    assert objective.needs_reference is False


def test_the_same_term_with_and_without_spans(pairs32):
    logps, labels = pairs32
    pair = {"term": "dpo", "win": "chosen", "lose": "rejected", "beta": 0.1}
    layout = types.Layout.of(("chosen", "rejected", "chosen@corrupted", "reference_answer"))
    objective = objectives.build({"a": {**pair, "with": {"spans": {}}}, "b": pair}, layout)
    _, metrics, _ = objective(objective.knobs, {}, logps, labels)
    np.testing.assert_allclose(metrics["loss/a"], [0.6349461016, 0.7871917248], atol=2e-6)
    np.testing.assert_allclose(metrics["loss/b"], [0.6491593390, 0.7602581947], atol=2e-6)


def test_spans_that_the_batch_lacks_are_named(pairs64):
    logps, labels = pairs64
    for given, found in ((logps.spans, "''"), (None, "none")):
        with pytest.raises(ValueError, match=rf"no spans named 'colour' \(it has {found}\)"):
            modifiers.spans(logps._replace(spans=given), labels, name="colour")


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
