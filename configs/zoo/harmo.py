"""HARMO: answers checked by rule or judged, a length penalty of the group, GRPO without the std.

  python -m rubric_jax run --config=configs/zoo/harmo.py --config.model.checkpoint=DIR \
      --config.pool.path=instructions.jsonl --workdir=RUN \
      --config.judging.judge.otherwise.model=NAME \
      --config.judging.judge.otherwise.base_url=http://HOST:8000/v1

Its reward R = hybrid + length + format, its advantage R_i - mean(R); every step samples.
Instructions with the column `answer` are checked by rule, the others judged by a template's
criteria. The length penalty is relative to the right responses of the group.

Ours: eight samples, the template, the form of the length penalty and its constants, the format.
"""

from configs import rdpo_llava

METHOD = {
    "row": 31,
    "name": "HARMO (Beyond Monolithic Rewards)",
    "paper": "arXiv:2510.05283",
    "status": "works",
    "missing": "",
}
OPEN = ("visual_fidelity", "contextual_relevance", "object_accuracy", "hallucination", "style")


def get_config():
    config = rdpo_llava.get_config()
    form = {"rule": "pattern", "pattern": "(?s)<think>.*</think>.+", "whole": True}
    config.pool.writer = {
        "writer": "rules",
        "rules": {"answer": {"rule": "answer"}, "format": {**form, "kind": "additional"}},
        "otherwise": "general",
    }
    config.judging.judge = {"judge": "rules", "otherwise": config.judging.judge.to_dict()}
    config.data.axes = ("answer", "format", "length", *OPEN)
    config.data.branches = tuple(f"response_{k}" for k in range(8))
    config.sample.count, config.sample.temperature, config.sample.top_k = 8, 1.0, 0
    config.pair.recipe = {"recipe": "group", "length": "length", "cap": 0.5, "tolerance": 0.2}
    weights = [1.0, 1.0, 1.0] + [0.2] * len(OPEN)
    config.objective = {
        "grpo": {"over": "response_*", "weights": weights, "std": False, "behaviour": "sampler"},
    }
    config.train.reference = "step"
    config.online.updates = 1
    config.rounds.count = 1
    return config
