"""TPO: lists out of a tree of thoughts, ranked by the policy, weighted as LambdaRank.

  python -m rubric_jax train --config=configs/zoo/tpo_trees.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Its equations 7 to 10: sum over pairs of |2^v_i - 2^v_j| |1/log(1 + rank_i) - 1/log(1 + rank_j)| x
-log sigma(sum over steps k of (1 + cos_k) beta x gap of the step), ranks by the current policy,
beta 0.5. A step is a line. Columns: response_0 .. response_9, response_0_rewards .. {"value": in
[0, 1]}, images.

Ours: v in [0, 1] in place of -100 .. 100; cos of the mean hidden states of step k in both answers;
eight steps.
"""

from configs import llava

METHOD = {
    "row": 67,
    "name": "TPO (preference trees)",
    "paper": "arXiv:2410.12854",
    "status": "your data",
    "missing": "the trees of thoughts and their values",
}


def get_config():
    config = llava.get_config()
    config.data.branches = tuple(f"response_{k}" for k in range(10))
    config.data.axes = ("value",)
    config.objective = {
        "tree_rank": {"over": "response_*", "beta": 0.5, "weights": [1.0], "steps": 8},
    }
    config.optimizer.learning_rate = 5e-7
    return config
