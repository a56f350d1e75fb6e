"""LLaVA with MODPO: pairs ordered by one axis, the rewards of the other axes as margin.

  python -m rubric_jax train --config=configs/llava_modpo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN \
      --config.objective.modpo.weights.grounding=0.5

The data need `chosen_rewards` and `rejected_rewards` on these axes, and `axis`, the one that
ordered the pair. Zhou et al., arXiv:2310.03708. Changing the weights compiles nothing again.
"""

from configs import llava


def get_config():
    config = llava.get_config()
    config.data.axes = ("correctness", "grounding", "completeness", "format")
    config.objective = {
        "modpo": {
            "weight": 1.0,
            "win": "chosen",
            "lose": "rejected",
            "beta": 0.1,
            "weights": {
                "correctness": 0.4,
                "grounding": 0.3,
                "completeness": 0.2,
                "format": 0.1,
            },
        },
    }
    return config
