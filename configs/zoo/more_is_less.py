"""More is Less: the same DPO on pairs of different sources.

  python -m rubric_jax run --config=configs/zoo/more_is_less.py --config.model.checkpoint=DIR \
      --config.pool.path=instructions.jsonl --workdir=RUN \
      --config.judging.judge.model=NAME --config.judging.judge.base_url=http://HOST:8000/v1

The arm of this file: chosen of another policy (--config.pair.other=DIR), rejected the policy's
own. Own against own: recipe "rubric". Demonstration against own: recipe "reference_pairs".

Ours: beta 0.1, one pair an instruction, a rubric for the reward model.
"""

from configs import rdpo_llava

METHOD = {
    "row": 69,
    "name": "More is Less",
    "paper": "arXiv:2504.02193",
    "status": "partial",
    "missing": "the probe that tells the sources apart; the evaluation by attacks",
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
    config.pair.recipe = {"recipe": "cross_model", "rejected": "own", "pairs": 1}
    config.objective = {"dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1}}
    config.rounds.count = 1
    return config
