"""HyPO: DPO offline, and the reverse divergence from the reference on own samples.

  python -m rubric_jax train --config=configs/zoo/hypo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Its equation: DPO + lambda KL(policy || reference), the gradient by the score function with a
leave-one-out baseline. Columns: chosen, rejected, images, and response_0 .. response_3, own
samples without labels (the command `sample`; renew them as the policy moves).

Ours: lambda 0.05, beta 0.1, four samples.
"""

from configs import llava

METHOD = {
    "row": 59,
    "name": "HyPO",
    "paper": "arXiv:2406.01462",
    "status": "partial",
    "missing": "fresh samples in every step: they come as columns, drawn from the start",
}


def get_config():
    config = llava.get_config()
    responses = tuple(f"response_{k}" for k in range(4))
    config.data.branches = ("chosen", "rejected", *responses)
    config.objective = {
        "dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1},
        "reverse_kl": {"weight": 0.05, "over": "response_*"},
    }
    return config
