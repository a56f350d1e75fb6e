"""Where the steps of responses end, and how alike they are."""

import jax
import numpy as np

from rubric_jax.likelihoods import steps

BREAK = 3
ENDS = np.arange(5) == BREAK


def test_a_step_ends_with_the_last_break_of_a_row():
    responses = np.array([[1, 2, 3, 3, 1, 3, 2]])
    np.testing.assert_array_equal(steps.number(ENDS[responses], 9), [[0, 0, 0, 0, 1, 1, 2]])
    np.testing.assert_array_equal(steps.number(ENDS[responses], 2), [[0, 0, 0, 0, 1, 1, 1]])


def test_a_response_that_begins_with_a_break_has_no_empty_step():
    np.testing.assert_array_equal(steps.number(ENDS[np.array([[3, 1, 1]])], 9), [[0, 1, 1]])


def test_similarity_is_the_cosine_of_the_steps_mean_states():
    responses = np.array([[[1, 3, 2, 0], [2, 3, 0, 0]]])
    mask = np.float32([[[1, 1, 1, 0], [1, 1, 0, 0]]])
    states = np.zeros((1, 2, 4, 2), np.float32)
    states[0, 0] = [[1, 0], [1, 2], [0, 5], [9, 9]]  # first step (2, 2), second (0, 5)
    states[0, 1] = [[3, 0], [1, 0], [7, 7], [7, 7]]  # first step (4, 0), no second
    found = steps.find(states, responses, mask, ENDS, 3).similarity
    np.testing.assert_allclose(found[0, 0, 1], [np.sqrt(0.5), 0, 0], atol=1e-6)
    np.testing.assert_allclose(found[0, 1, 0], found[0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(found[0, 0, 0], [1, 1, 0], atol=1e-6)


def test_similarity_carries_no_gradient():
    responses, mask = np.array([[[1, 3, 2]]]), np.ones((1, 1, 3), np.float32)

    def total(states):
        return steps.find(states, responses, mask, ENDS, 2).similarity.sum()

    assert not jax.grad(total)(np.ones((1, 1, 3, 4), np.float32)).any()
