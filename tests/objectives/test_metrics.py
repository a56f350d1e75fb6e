"""What is logged of a pair."""

import numpy as np

from rubric_jax import objectives


def test_pair_metrics_by_hand(pairs, close):
    found = objectives.pair_metrics(*pairs, win=0, lose=1, beta=0.1, axes=("a", "b", "c"))
    expected = {
        "rewards/chosen": [0.04, -0.04],
        "rewards/rejected": [-0.05, 0.09],
        "rewards/margins": [0.09, -0.13],
        "rewards/accuracies": [1.0, 0.0],
        "logps/chosen": [-3.5, -1.1],
        "logps/rejected": [-4.2, -3.4],
        "reward_gap/a": [0.5, -0.5],
        "reward_gap/b": [-1.0, 1.0],
        "reward_gap/c": [0.0, 0.5],
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        close(found[name], values)


def test_pair_metrics_of_a_row_without_the_pair_are_zero(pairs64):
    logps, labels = pairs64
    mask = np.array(logps.mask)
    mask[1, 1] = 0
    found = objectives.pair_metrics(
        logps._replace(mask=mask), labels, win=0, lose=1, beta=0.1, axes=("a", "b", "c")
    )
    assert all(values[1] == 0 for values in found.values())


def test_a_tie_is_not_accurate(pairs64):
    logps, labels = pairs64
    logps = logps._replace(ref=logps.policy)
    found = objectives.pair_metrics(logps, labels, win=0, lose=1, beta=0.1)
    np.testing.assert_array_equal(found["rewards/accuracies"], [0, 0])
