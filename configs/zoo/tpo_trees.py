"""TPO: lists out of a tree of thoughts, ranked by the policy, weighted as LambdaRank.

  python -m rubric_jax train --config=configs/zoo/tpo_trees.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Its equations 7 and 8: sum over pairs of |2^v_i - 2^v_j| |1/log(1 + rank_i) - 1/log(1 + rank_j)| x
DPO, ranks by the current policy, beta 0.5. Columns: response_0 .. response_9, response_0_rewards
.. {"value": in [0, 1]}, images.

Ours: v in [0, 1] in place of -100 .. 100.
"""

from configs import llava

METHOD = {
    "row": 67,
    "name": "TPO (preference trees)",
    "paper": "arXiv:2410.12854",
    "status": "partial",
    "missing": "weights of steps by their similarity: they differ from pair to pair of a list",
}


def get_config():
    config = llava.get_config()
    config.data.branches = tuple(f"response_{k}" for k in range(10))
    config.data.axes = ("value",)
    config.objective = {
        "lambda_rank": {"over": "response_*", "beta": 0.5, "weights": [1.0], "rank_by": "policy"},
    }
    config.optimizer.learning_rate = 5e-7
    return config
