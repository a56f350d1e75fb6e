"""What is logged of a pair, whatever the objective."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rubric_jax import types


def pair_metrics(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    axes: tuple[str, ...] = (),
) -> dict[str, jax.Array]:
    """Implicit rewards of a pair under TRL's names, and the data's reward gap per axis. Each [B].

    rewards/chosen, rewards/rejected   beta * log-ratio to the reference
    rewards/margins                    their difference
    rewards/accuracies                 1 where chosen > rejected; a tie counts as wrong
    logps/chosen, logps/rejected       summed log-probabilities, nats
    reward_gap/<axis>                  rewards of win - lose as labelled, not weighted

    All are 0 where a branch is absent: average over `logps.present(win, lose)`. Without gradient.
    """
    logps = jax.lax.stop_gradient(logps)
    chosen, rejected = beta * logps.ratio(win), beta * logps.ratio(lose)
    values = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).astype(chosen.dtype),
        "logps/chosen": logps.total(win),
        "logps/rejected": logps.total(lose),
    }
    gap = labels.rewards[:, win] - labels.rewards[:, lose]  # [B, A]
    values |= {f"reward_gap/{axis}": gap[:, a] for a, axis in enumerate(axes)}
    present = logps.present(win, lose) > 0
    return {name: jnp.where(present, value, 0.0) for name, value in values.items()}
