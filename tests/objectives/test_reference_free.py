"""Terms without a reference against numbers worked by hand."""

import numpy as np
import pytest

from rubric_jax.objectives import reference_free

PAIR = {"win": 0, "lose": 1}


@pytest.mark.parametrize(
    ("term", "knobs", "expected"),
    [
        ("simpo", {"beta": 2.0, "gamma": 0.5}, [1.1255816844, 0.4143700869]),
        ("simpo", {"beta": 5.0, "gamma": 2.5}, [3.1281215137, 0.5063600460]),
        ("simpo_hinge", {"beta": 1.0, "gamma": 1.0}, [2.1166666667, 1.4166666667]),
        ("orpo", {"lam": 0.1}, [1.2450731833, 0.5798751493]),
        ("cpo", {"beta": 0.1, "nll_weight": 0.0}, [0.6587595555, 0.5847451567]),
        ("cpo", {"beta": 0.1}, [1.8254262222, 1.1347451567]),
    ],
)
def test_terms_without_a_reference_by_hand(pairs, close, term, knobs, expected):
    close(getattr(reference_free, term)(*pairs, **PAIR, **knobs)[0], expected)


def test_log_odds_by_hand(pairs, close):
    _, metrics = reference_free.orpo(*pairs, **PAIR, lam=0.1)
    chosen = np.array([-0.7935672567, 0.3102644554])
    rejected = np.array([-0.6193128499, -0.7447868868])
    close(metrics["log_odds"], chosen - rejected)


def test_scaling_the_token_weights_leaves_simpo_alone(pairs64):
    logps, labels = pairs64
    knobs = {**PAIR, "beta": 2.0, "gamma": 0.5}
    scaled = logps._replace(mask=3 * logps.mask)
    np.testing.assert_allclose(
        reference_free.simpo(scaled, labels, **knobs)[0],
        reference_free.simpo(logps, labels, **knobs)[0],
        rtol=1e-12,
    )


def test_simpo_subtracts_the_margin_as_it_does_gamma(pairs64):
    logps, labels = pairs64
    moved = labels._replace(margin=np.full(2, 0.2))
    np.testing.assert_allclose(
        reference_free.simpo(logps, moved, **PAIR, beta=2.0, gamma=0.3)[0],
        [1.1255816844, 0.4143700869],
        rtol=1e-9,
    )
