"""RankList-like: neighbours in a list, then neighbours at two places, and so on.

  python -m rubric_jax train --config=configs/zoo/ranklist.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Our reading: sum over skips k of sum_i log(1 + exp(r_{i+k} - r_i)), r = beta x log-ratio in place
of a head's score. For more skips go on from RUN/policy with --config.objective.ranklist.skips=2.
The form with logsumexp is plackett_luce. Columns: response_0 .. response_3, response_0_rewards ..
{"score": ..}, images.
"""

from configs import llava

METHOD = {
    "row": 68,
    "name": "RankList",
    "paper": "",
    "status": "partial",
    "missing": "a score head; skips that grow with the step; the formula is our reading",
}


def get_config():
    config = llava.get_config()
    config.data.branches = tuple(f"response_{k}" for k in range(4))
    config.data.axes = ("score",)
    config.objective = {
        "ranklist": {
            "over": "response_*",
            "beta": 0.1,
            "weights": [1.0],
            "skips": 1,
            "min_gap": 0.1,
        },
    }
    return config
