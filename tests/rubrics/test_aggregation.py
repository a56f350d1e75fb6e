"""Aggregation of criterion scores: values worked by hand, then identities over all schemes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import config
from rubric_jax.rubrics import aggregation, arrays, records, scalarisers

AXES = ("x", "y", "z")


def rubric(weights, kinds, *, axes="x", penalties=""):
    criteria = [
        {
            "id": f"c{i}",
            "text": "t",
            "kind": {"e": "essential", "a": "additional"}[kinds[i]],
            "weight": weight,
            "axis": axes[i % len(axes)],
            "penalty": str(i) in penalties,
        }
        for i, weight in enumerate(weights)
    ]
    return records.parse({"key": "k", "criteria": criteria}, where="test")


def stacked(rubrics, scores, **kwargs):
    named = [
        [r and {f"c{i}": s for i, s in enumerate(r) if s is not None} for r in rows]
        for rows in scores
    ]
    return arrays.stack(rubrics, named, AXES, **kwargs)


def one(weights, kinds, scores, **kwargs):
    """Scores of one instance with one response."""
    return stacked([rubric(weights, kinds, **kwargs)], [[scores]])


def total(rewards):
    return float(rewards.total[0, 0])


# Three instances with four criteria of weights 3, 2, 1, 1, of which the first two are essential.
FIXTURE = stacked(
    [rubric([3, 2, 1, 1], "eeaa", axes="xyxz")] * 3,
    [
        [[1.0, 1.0, 0.5, 0.0], [0.5, 1.0, 0.0, 1.0]],
        [[1.0, 0.5, 1.0, 0.5], [0.5, 1.0, 0.0, 0.0]],
        [[1.0, 1.0, 1.0, 0.5], [1.0, 1.0, 0.0, 0.0]],
    ],
)


def test_weighted_mean_by_hand():
    rewards = aggregation.weighted_mean(FIXTURE)
    np.testing.assert_allclose(
        rewards.total,
        [[0.7857142857, 0.6428571429], [0.7857142857, 0.5], [0.9285714286, 0.7142857143]],
        rtol=1e-6,
    )
    # x: (3 s0 + 1 s2) / 4, y: s1, z: s3
    np.testing.assert_allclose(rewards.axes[0], [[0.875, 1.0, 0.0], [0.375, 1.0, 1.0]], rtol=1e-6)


def test_weighted_mean_with_the_weights_of_rar_by_hand():
    scores = one([1.0, 0.7, 0.3, 0.9], "eaaa", [1, 0, 1, 1])
    assert total(aggregation.weighted_mean(scores)) == pytest.approx(0.7586206897)


def test_gated_mix_by_hand():
    full = aggregation.gated_mix(FIXTURE, lam=0.3, tau=1.0).total
    assert float(full[0, 0]) == pytest.approx(0.775)
    assert float(full[0, 1]) == pytest.approx(0.49)
    assert float(aggregation.gated_mix(FIXTURE, tau=0.75).total[1, 0]) == pytest.approx(0.785)


def test_gated_mix_per_axis_by_hand():
    axes = aggregation.gated_mix(FIXTURE).axes
    # x: 0.7 * 1 + 0.3 * 0.5; y has essentials only; z additional ones only, behind the gate
    np.testing.assert_allclose(axes[0], [[0.85, 1.0, 0.0], [0.35, 1.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(axes[2, 0], [1.0, 1.0, 0.5], rtol=1e-6)


def test_hard_gate_by_hand():
    assert total(aggregation.hard_gate(one([1] * 5, "eeaaa", [1, 1, 1, 0, 1]))) == pytest.approx(
        2 / 3
    )
    assert total(aggregation.hard_gate(one([1] * 5, "eeaaa", [1, 0, 1, 1, 1]))) == 0.0
    assert total(aggregation.hard_gate(one([1, 1], "ee", [1, 1]))) == 1.0
    # weights play no part, and half a score does not pass
    assert total(aggregation.hard_gate(one([1, 9, 1], "eaa", [1, 0.5, 1]))) == 0.5
    assert total(aggregation.hard_gate(one([1, 9, 1], "eaa", [1, 0.5, 1]), tau=0.5)) == 1.0


def test_outcome_by_hand():
    rewards = aggregation.outcome(FIXTURE)
    np.testing.assert_array_equal(rewards.total, [[1, 0], [0, 0], [1, 1]])
    np.testing.assert_array_equal(rewards.axes[1], [[1, 0, 1], [0, 1, 1]])


def test_signed_points_by_hand():
    scores = one([5, 3, 4], "eea", [1, 0, 1], penalties="2")
    assert total(aggregation.signed_points(scores)) == pytest.approx(0.125)
    scores = one([5, 3, 4], "eea", [0, 0, 1], penalties="2")
    assert total(aggregation.signed_points(scores)) == pytest.approx(-0.5)


def test_signed_points_on_an_axis_of_penalties_is_the_lost_share():
    scores = one([5, 3, 1], "eaa", [1, 1, 0], axes="xyy", penalties="12")
    np.testing.assert_allclose(
        aggregation.signed_points(scores).axes[0, 0], [1.0, -0.75, 0.0], rtol=1e-6
    )


def test_elsewhere_a_penalty_counts_with_what_is_missing_of_it():
    scores = one([1, 3], "ea", [1, 1], penalties="1")
    assert total(aggregation.weighted_mean(scores)) == pytest.approx(0.25)
    assert not bool(aggregation.all_essentials(one([1], "e", [1], penalties="0"))[0, 0])


def test_stratified_by_hand():
    rewards = aggregation.stratified(FIXTURE, low=0.4, high=0.6)
    assert float(rewards.total[0, 0]) == pytest.approx(0.6 + 0.4 * 0.7857142857)
    assert float(rewards.total[0, 1]) == pytest.approx(0.4 * 0.6428571429)
    given = aggregation.stratified(FIXTURE, np.array([[False, True]] * 3))
    assert float(given.total[0, 0]) == pytest.approx(0.4 * 0.7857142857)


def test_whitening_weights_by_hand():
    cov = jnp.asarray([[1, 0.8, 0], [0.8, 1, 0], [0, 0, 1]])
    weights = aggregation.whitening_weights(cov)
    np.testing.assert_allclose(weights, [0.7453559925, 0.7453559925, 1.0], rtol=1e-5)
    np.testing.assert_allclose(
        weights / weights.sum(), [0.2992541880, 0.2992541880, 0.4014916241], rtol=1e-5
    )


def test_whitened_by_hand():
    # Criteria 0 and 1 always agree, 2 is independent; all have variance 1/4.
    rows = [[1, 1, 1], [1, 1, 0], [0, 0, 1], [0, 0, 0]]
    scores = stacked([rubric([3, 1, 1], "eaa")], [rows])
    pair, single = 1 / np.sqrt(0.5 + 0.05), 1 / np.sqrt(0.25 + 0.05)
    np.testing.assert_allclose(
        aggregation.whitened(scores, ridge=0.05).total[0, 1:3],
        [2 * pair / (2 * pair + single), single / (2 * pair + single)],
        rtol=1e-5,
    )


def test_saturation_weights_by_hand():
    weights = aggregation.saturation_weights(np.ones(2), np.array([0.9, 0.2]), gamma=1.0)
    np.testing.assert_allclose(weights, [0.1, 0.8], rtol=1e-6)


def test_saturation_by_hand():
    # Criterion 0 is met by all: only criterion 1, met by half, counts.
    scores = stacked([rubric([3, 1], "ea")], [[[1, 1], [1, 0]]])
    np.testing.assert_allclose(aggregation.saturation(scores).total, [[1, 0]], rtol=1e-6)
    np.testing.assert_allclose(
        aggregation.saturation(scores, gamma=0.0).total, aggregation.weighted_mean(scores).total
    )
    met = stacked([rubric([3, 1], "ea")], [[[1, 1], [1, 1]]])
    np.testing.assert_allclose(aggregation.saturation(met).total, [[1, 1]], rtol=1e-6)


def test_the_essentials_by_hand():
    np.testing.assert_allclose(
        aggregation.essential_score(FIXTURE), [[1, 0.7], [0.8, 0.7], [1, 1]], rtol=1e-6
    )
    np.testing.assert_array_equal(
        aggregation.all_essentials(FIXTURE), [[True, False], [False, False], [True, True]]
    )
    assert bool(aggregation.no_essential_failed(FIXTURE).all())
    failed = one([1, 1, 1], "eea", [1, 0, 1])
    assert not bool(aggregation.no_essential_failed(failed)[0, 0])


# What holds for every scheme.

EVERY = pytest.mark.parametrize("name", aggregation.AGGREGATIONS)


def random_scores(seed=0):
    rng = np.random.default_rng(seed)
    rubrics = [
        rubric(rng.integers(1, 4, 5), "e" + "".join(rng.choice(list("ea"), 4)), axes="xyzxy")
        for _ in range(6)
    ]
    return rubrics, rng.choice([0, 0.5, 1], (6, 4, 5)).tolist()


@EVERY
def test_padding_changes_nothing(name):
    scheme = aggregation.AGGREGATIONS[name]
    rubrics, rows = random_scores()
    plain = scheme(stacked(rubrics, rows))
    padded = scheme(stacked(rubrics, rows, responses=7, criteria=9))
    np.testing.assert_allclose(padded.total[:, :4], plain.total, rtol=2e-5)
    np.testing.assert_allclose(padded.axes[:, :4], plain.axes, rtol=2e-5)
    assert not padded.valid[:, 4:].any()
    assert np.isnan(padded.total[:, 4:]).all()


@EVERY
def test_a_response_that_lacks_a_score_has_no_reward_and_leaves_the_others_alone(name):
    scheme = aggregation.AGGREGATIONS[name]
    rubrics, rows = random_scores()
    rows[0][1][2] = None
    rows[1][3] = None
    rewards = scheme(stacked(rubrics, rows))
    assert np.isnan(rewards.total[0, 1])
    assert np.isnan(rewards.axes[1, 3]).all()
    assert np.asarray(rewards.valid).sum() == 6 * 4 - 2
    assert np.isfinite(np.asarray(rewards.total)[np.asarray(rewards.valid)]).all()
    del rows[0][1], rows[1][3]
    without = scheme(stacked(rubrics, rows))
    np.testing.assert_allclose(rewards.total[0, [0, 2, 3]], without.total[0, :3], rtol=2e-5)


@EVERY
def test_every_criterion_met_is_1_and_none_met_is_0(name):
    scheme = aggregation.AGGREGATIONS[name]
    rubrics, _ = random_scores()
    rewards = scheme(stacked(rubrics, [[[1] * 5, [0] * 5]] * 6))
    np.testing.assert_allclose(rewards.total, [[1, 0]] * 6, atol=1e-5)
    np.testing.assert_allclose(rewards.axes[:, 0], rewards.known, atol=1e-5)


# The weights of the others depend on the scores of the whole group.
@pytest.mark.parametrize("name", sorted({*aggregation.AGGREGATIONS} - {"whitened", "saturation"}))
def test_a_better_score_never_lowers_the_total(name):
    scheme = aggregation.AGGREGATIONS[name]
    rubrics, rows = random_scores()
    before = scheme(stacked(rubrics, rows)).total
    for c in range(5):
        raised = [[[*r[:c], 1, *r[c + 1 :]] for r in instance] for instance in rows]
        assert (scheme(stacked(rubrics, raised)).total >= before - 1e-6).all()


@EVERY
def test_one_compilation_serves_all_values_of_the_knobs(name):
    scheme = aggregation.AGGREGATIONS[name]
    config.bind(aggregation.AGGREGATIONS, name, {}, what="aggregation")
    scores = stacked(*random_scores())
    jitted = jax.jit(scheme)(scores)
    np.testing.assert_allclose(jitted.total, scheme(scores).total, rtol=2e-5)


@EVERY
def test_an_axis_without_criteria_is_unknown_and_0(name):
    rewards = aggregation.AGGREGATIONS[name](one([1, 2], "ea", [1, 1], axes="xy"))
    np.testing.assert_array_equal(rewards.known, [[True, True, False]])
    assert float(rewards.axes[0, 0, 2]) == 0.0


# Stacking and scalarisers.


def test_stacking_refuses_what_does_not_belong_together():
    r = rubric([1], "e")
    with pytest.raises(ValueError, match=r"criterion 'other', which the rubric of k does not have"):
        arrays.stack([r], [[{"other": 1.0}]], AXES)
    with pytest.raises(ValueError, match=r"c0 of k scores 1.5; not in \[0, 1\]"):
        arrays.stack([r], [[{"c0": 1.5}]], AXES)
    with pytest.raises(ValueError, match="unknown axis 'x' of 'c0'"):
        arrays.stack([r], [[{"c0": 1.0}]], ("y",))
    with pytest.raises(ValueError, match="1 rubrics for 2 lists"):
        arrays.stack([r], [[], []], AXES)


def test_scalarisers_by_hand():
    weights = np.array([0.3, 0.7])
    assert float(scalarisers.harmonic(np.array([0.8, 0.4]), weights=weights)) == pytest.approx(
        0.4705882353
    )
    assert float(scalarisers.harmonic(np.array([0.8, 0.0]), weights=weights)) == 0.0
    assert float(scalarisers.harmonic(np.array([0.8, 0.0]), weights=np.array([1.0, 0.0]))) == (
        pytest.approx(0.8)
    )
    direction = np.array([np.cos(np.pi / 6), np.sin(np.pi / 6)])
    for length in (1, 3):
        assert float(
            scalarisers.projection(np.array([0.6, 0.9]), weights=length * direction)
        ) == pytest.approx(0.9696152423)
    assert float(scalarisers.linear(np.array([0.8, 0.4]), weights=3 * weights)) == pytest.approx(
        0.52
    )
    np.testing.assert_allclose(
        scalarisers.sequential(np.array([[0.9, 0, 0.8], [0.9, 0.5, 0.8]])), [0, 0.8], rtol=1e-6
    )
