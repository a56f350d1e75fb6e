"""MODPO: pairs ordered by one axis, the other axes as margin.

  python -m rubric_jax run --config=configs/zoo/modpo.py --config.model.checkpoint=DIR \
      --config.pool.path=instructions.jsonl --workdir=RUN \
      --config.judging.judge.model=NAME --config.judging.judge.base_url=http://HOST:8000/v1

Its equation: -log sigma((beta gap - sum_{k != axis} w_k (reward gap)_k) / w_axis). Any reward
serves as margin; here they are the rubric's per axis. The weights of a sweep compile once;
`train.front` trains several at a time. With pairs of your own: `train` and the columns
chosen_rewards, rejected_rewards, axis.

Ours: weights and scale, which brings rewards in [0, 1] to the size of beta x log-ratio.
"""

from configs import rdpo_llava

METHOD = {
    "row": 34,
    "name": "MODPO",
    "paper": "arXiv:2310.03708",
    "status": "works",
    "missing": "",
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
    config.pair.recipe = {"recipe": "rubric", "pairs": 1}
    config.objective = {
        "modpo": {
            "win": "chosen",
            "lose": "rejected",
            "beta": 0.1,
            "weights": [0.2] * 5,
            "scale": 2.0,
        },
    }
    config.rounds.count = 1
    return config
