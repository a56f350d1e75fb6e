"""nll against numbers worked by hand."""

import numpy as np
import pytest

from rubric_jax.objectives import likelihood


@pytest.mark.parametrize(
    ("on", "reduce", "expected"),
    [
        (0, "sum", [3.5, 1.1]),
        (0, "mean", [1.1666666667, 0.55]),
        (3, "mean", [0.5, 1.1]),
    ],
)
def test_nll_by_hand(pairs, close, on, reduce, expected):
    close(likelihood.nll(*pairs, on=on, reduce=reduce)[0], expected)


@pytest.mark.parametrize(("on", "expected"), [(0, 0.92), (3, 0.7)])
def test_nll_over_the_tokens_of_the_batch_by_hand(pairs, close, on, expected):
    close(likelihood.nll(*pairs, on=on, reduce="batch_tokens")[0].mean(), expected)


def test_nll_over_the_tokens_of_the_batch_skips_absent_rows(pairs64):
    logps, labels = pairs64
    mask = np.array(logps.mask)
    mask[1, 0] = 0
    loss, _ = likelihood.nll(logps._replace(mask=mask), labels, on=0, reduce="batch_tokens")
    np.testing.assert_allclose(loss, [3.5 / 3, 0.0], rtol=1e-12)  # 3.5 nats over 3 tokens


def test_nll_mean_divides_by_token_weights(pairs64):
    logps, labels = pairs64
    mask = np.array(logps.mask)
    mask[0, 0, :3] = [0.5, 2.0, 0.5]
    loss, _ = likelihood.nll(logps._replace(mask=mask), labels, on=0)
    np.testing.assert_allclose(loss[0], (0.5 + 1.0 + 1.0) / 3.0, rtol=1e-12)


@pytest.mark.parametrize(
    ("term", "knobs", "expected"),
    [
        ("anchor", {"on": 0, "beta": 0.1}, [0.6733471672, 0.7133471672]),
        ("anchor", {"on": 0, "beta": 0.1, "delta": 0.1}, [0.7235971131, 0.7655951823]),
        ("anchor", {"on": 1, "beta": 0.1, "sign": -1}, [0.6684596480, 0.7391593390]),
        ("shift", {"on": 0, "coef": -0.05}, [-0.02, 0.02]),
        ("shift", {"on": 3, "coef": 0.05}, [0.005, -0.005]),
        ("sft_phi", {"on": 3, "phi": "linear"}, [-0.1, 0.1]),
        ("sft_phi", {"on": 3, "phi": "pearson"}, [-0.0975, 0.1025]),
        ("sft_phi", {"on": 3, "phi": "sq_hellinger"}, [-0.0909090909, 0.1111111111]),
        # The rationale's part of a composite: the whole less dpo.
        (
            "logistic_nll",
            {"on": 3, "beta": 0.1},
            [1.3935559991 - 0.6491593390, 1.5099171133 - 0.7602581947],
        ),
    ],
)
def test_terms_on_one_branch_by_hand(pairs, close, term, knobs, expected):
    close(getattr(likelihood, term)(*pairs, **knobs)[0], expected)


def test_an_anchor_at_the_reference_is_log_2(pairs64):
    logps, labels = pairs64
    loss, _ = likelihood.anchor(logps._replace(ref=logps.policy), labels, on=0, beta=0.1)
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-12)


def test_linear_sft_has_the_gradient_of_nll(pairs64, slope):
    linear = slope(likelihood.sft_phi, *pairs64, 3, on=3, phi="linear")
    nll = slope(likelihood.nll, *pairs64, 3, on=3, reduce="sum")
    np.testing.assert_array_equal(linear, nll)


@pytest.mark.parametrize(
    ("phi", "ratio", "expected"),
    [
        ("pearson", 2.0, 0.0),  # its top
        ("sq_hellinger", -0.5, -4.0),  # the tangent goes on from here
        ("sq_hellinger", -30.0, -4.0),
    ],
)
def test_slopes_of_phi_by_hand(pairs64, make_list, slope, phi, ratio, expected):
    del pairs64  # for its 64-bit types
    found = slope(likelihood.sft_phi, *make_list([ratio, 0.0], [0, 0]), 0, on=0, phi=phi)
    np.testing.assert_allclose(found, [expected], atol=1e-12)


def test_a_negative_shift_raises_its_branch_and_a_positive_one_lowers_it(pairs64, slope):
    assert (slope(likelihood.shift, *pairs64, 3, on=3, coef=-0.05) < 0).all()
    assert (slope(likelihood.shift, *pairs64, 3, on=3, coef=0.05) > 0).all()
