"""HyPO: DPO offline, and the reverse divergence from the reference on own samples.

  python -m rubric_jax run --config=configs/zoo/hypo.py --config.model.checkpoint=DIR \
      --config.pool.path=prefs.jsonl --workdir=RUN

Its equation: DPO + lambda KL(policy || reference), the gradient by the score function with a
leave-one-out baseline. prefs.jsonl is preference data (chosen, rejected, images): every step reads
the pairs and samples anew from their prompts. No labels, hence no judge.

Ours: lambda 0.05, beta 0.1, four samples.
"""

from configs import llava

METHOD = {
    "row": 59,
    "name": "HyPO",
    "paper": "arXiv:2406.01462",
    "status": "works",
    "missing": "",
}


def get_config():
    config = llava.get_config()
    responses = tuple(f"response_{k}" for k in range(4))
    config.data.branches = ("chosen", "rejected", *responses)
    config.sample.count, config.sample.temperature, config.sample.top_k = 4, 1.0, 0
    config.pair.recipe = {"recipe": "group", "judged": False}
    config.objective = {
        "dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1},
        "reverse_kl": {"weight": 0.05, "over": "response_*"},
    }
    config.train.reference = "step"
    config.online.updates = 1
    return config
