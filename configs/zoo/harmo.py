"""HARMO-like: group policy gradient without the standard deviation, on a plain sum of rewards.

  python -m rubric_jax run --config=configs/zoo/harmo.py --config.model.checkpoint=DIR \
      --config.pool.path=instructions.jsonl --workdir=RUN \
      --config.judging.judge.model=NAME --config.judging.judge.base_url=http://HOST:8000/v1

Its advantage: R_i - mean(R). Here R is the sum of the rubric's axes, and a round's samples are
used in one pass, with the ratio to the policy that sampled them.

Ours: eight samples, clip 0.2, the rubric as rewards.
"""

from configs import rdpo_llava

METHOD = {
    "row": 31,
    "name": "HARMO (Beyond Monolithic Rewards)",
    "paper": "arXiv:2510.05283",
    "status": "partial",
    "missing": (
        "the length penalty of a group; rules for verifiable questions; sampling in every step"
    ),
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
    config.data.branches = tuple(f"response_{k}" for k in range(8))
    config.sample.count = 8
    config.sample.temperature = 1.0
    config.sample.top_k = 0
    config.pair.recipe = {"recipe": "listwise", "count": 8, "repeats": True, "finished": False}
    config.objective = {
        "grpo": {"over": "response_*", "weights": [1.0] * 5, "std": False},
    }
    return config
