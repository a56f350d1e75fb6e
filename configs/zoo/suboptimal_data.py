"""Which matters: own samples, a negative gradient, or using samples again?

  python -m rubric_jax run --config=configs/zoo/suboptimal_data.py --config.model.checkpoint=DIR \
      --config.pool.path=instructions.jsonl --workdir=RUN \
      --config.judging.judge.model=NAME --config.judging.judge.base_url=http://HOST:8000/v1

One arm at a time by --config.objective.rwr.weight=1 --config.objective.rloo.weight=0 and so on:
rwr has no negative gradient, rloo and grpo have. Every step samples; --config.online.updates=4 uses
each batch of samples four times. Offline arms: dpo and ipo of configs/zoo/insights.py, SFT as
configs/zoo/dpa.py.

Ours: four samples, the rubric as reward.
"""

from configs import rdpo_llava

METHOD = {
    "row": 73,
    "name": "Suboptimal on-policy data",
    "paper": "arXiv:2404.14367",
    "status": "partial",
    "missing": "the bandits with a known reward; PPO's value function",
}


def get_config():
    config = rdpo_llava.get_config()
    config.pool.writer = {"writer": "template", "template": "general"}
    config.data.axes = (
        "visual_fidelity",
        "contextual_relevance",
        "object_accuracy",
        "hallucination",
        "style",
    )
    config.data.branches = tuple(f"response_{k}" for k in range(4))
    config.sample.count = 4
    config.pair.recipe = {"recipe": "group"}
    group = {"over": "response_*", "weights": [0.2] * 5}
    config.objective = {
        "rloo": {"weight": 1.0, **group},
        "rwr": {"weight": 0.0, **group, "temperature": 0.2},
        "grpo": {"weight": 0.0, **group, "behaviour": "sampler"},
    }
    config.train.reference = "step"
    config.online.updates = 1
    config.rounds.count = 1
    return config
