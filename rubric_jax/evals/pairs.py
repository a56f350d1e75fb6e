"""What a policy's rewards, implicit or of its heads, say about preference pairs."""

from __future__ import annotations

import numpy as np


def implicit(policy: np.ndarray, reference: np.ndarray) -> dict[str, np.ndarray]:
    """`pair accuracy` and `pair margin` of log-probabilities [pairs, 2] of (chosen, rejected).

    The margin is log(pi/ref)(chosen) - log(pi/ref)(rejected), in nats (the implicit reward over
    beta); accuracy 1 where it is above 0, 1/2 where it is 0.
    """
    return _measures(np.asarray(policy, np.float64) - reference, "pair")


def of_head(name: str, scores: np.ndarray) -> dict[str, np.ndarray]:
    """`<name> accuracy` and `<name> margin` of a head's scores [pairs, 2] of (chosen, rejected)."""
    return _measures(np.asarray(scores, np.float64), name)


def _measures(rewards: np.ndarray, name: str) -> dict[str, np.ndarray]:
    margin = np.subtract(*rewards.T)
    return {
        f"{name} accuracy": (margin > 0) + 0.5 * (margin == 0),
        f"{name} margin": margin,
    }
