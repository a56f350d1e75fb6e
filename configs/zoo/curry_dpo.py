"""Curry-DPO: pairs from easy to hard, each stage against the policy before it.

  python -m rubric_jax train --config=configs/zoo/curry_dpo.py --config.model.checkpoint=DIR \
      --config.data.path=rated.jsonl --workdir=RUN

Of four rated answers the best against the worst, then against the third, then against the second:
three stages of DPO, the reference of each the policy that it starts from. Columns: response_0 to
response_3, response_0_rewards .. {"rating": ..} in [0, 1], images.

Ours: beta 0.1. The control, the same pairs shuffled in as many steps: --config.schedule="()".
"""

from configs import llava

METHOD = {
    "row": 76,
    "name": "Curry-DPO",
    "paper": "arXiv:2403.07230",
    "status": "works",
    "missing": "",
}


def get_config():
    config = llava.get_config()
    config.data.axes = ("rating",)
    config.data.rated = {"pairs": "best_vs_rest"}
    config.objective = {"dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1}}
    config.schedule = tuple(
        {"name": name, "data": {"view": {"by": "level", "low": level, "high": level}}}
        for level, name in enumerate(("easy", "middle", "hard"), 1)
    )
    return config
