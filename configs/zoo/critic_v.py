"""Critic-V: a critic of answers, trained by DPO on pairs of critiques.

  python -m rubric_jax run --config=configs/zoo/critic_v.py --config.model.checkpoint=DIR \
      --config.pool.path=instructions.jsonl --workdir=RUN \
      --config.judging.judge.otherwise.model=NAME \
      --config.judging.judge.otherwise.base_url=http://HOST:8000/v1

Plain DPO on critiques with the higher and the lower score: Jaccard index of the errors they list
and those that were put in, plus a rating. Instructions have the question and the answer under
review as prompt, and "facts": {"items": [the errors that were put into it]}.

Ours: beta 0.1; errors count as found by their words; the critiques are the policy's own, where the
paper has three models write them (config.pair.other names a second one for `cross_model`).
"""

from configs import rdpo_llava

METHOD = {
    "row": 14,
    "name": "Critic-V",
    "paper": "arXiv:2411.18203",
    "status": "your data",
    "missing": "putting errors into right answers; the loop of critic and reasoner when answering",
}


def get_config():
    config = rdpo_llava.get_config()
    config.pool.writer = {
        "writer": "rules",
        "rules": {
            "found": {"rule": "overlap", "pattern": r"(?m)^\s*(?:\d+[.)]|[-*])\s+(.+?)\s*$"},
            "rating": {
                "text": "The critique is right, precise and useful.",
                "scale": "1-5",
                "kind": "additional",
            },
        },
    }
    config.judging.judge = {"judge": "rules", "otherwise": config.judging.judge.to_dict()}
    config.data.axes = ("found", "rating")
    config.pair.recipe = {"recipe": "rubric", "margin": 0.0, "pairs": 1, "unfailed": False}
    config.objective = {"dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1}}
    config.rounds.count = 1
    return config
