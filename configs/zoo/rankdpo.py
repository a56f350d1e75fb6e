"""RankDPO on text: all pairs of a list, weighted by what swapping their ranks would cost.

  python -m rubric_jax train --config=configs/zoo/rankdpo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Its equation: sum over pairs of |2^phi_i - 2^phi_j| |1/log(1 + rank_i) - 1/log(1 + rank_j)| x DPO,
phi the share of comparisons won, ranks by the labels. Columns: response_0 .. response_3,
response_0_rewards .. {"wins": in [0, 1]}, images.

Ours: beta 0.1 for text.
"""

from configs import llava

METHOD = {
    "row": 50,
    "name": "RankDPO",
    "paper": "arXiv:2410.18013",
    "status": "partial",
    "missing": (
        "the diffusion likelihood: here responses are text; the votes of five reward models"
    ),
}


def get_config():
    config = llava.get_config()
    config.data.branches = tuple(f"response_{k}" for k in range(4))
    config.data.axes = ("wins",)
    config.objective = {
        "lambda_rank": {"over": "response_*", "beta": 0.1, "weights": [1.0], "rank_by": "labels"},
    }
    return config
