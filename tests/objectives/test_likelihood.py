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
