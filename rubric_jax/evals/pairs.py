"""What a policy's implicit rewards say about preference pairs."""

from __future__ import annotations

import numpy as np


def implicit(policy: np.ndarray, reference: np.ndarray) -> dict[str, np.ndarray]:
    """`pair accuracy` and `pair margin` of log-probabilities [pairs, 2] of (chosen, rejected).

    The margin is log(pi/ref)(chosen) - log(pi/ref)(rejected), in nats (the implicit reward over
    beta); accuracy 1 where it is above 0, 1/2 where it is 0.
    """
    margin = np.subtract(*(np.asarray(policy, np.float64) - reference).T)
    return {
        "pair accuracy": (margin > 0) + 0.5 * (margin == 0),
        "pair margin": margin,
    }
