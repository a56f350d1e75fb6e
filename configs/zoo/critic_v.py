"""Critic-V: a critic of answers, trained by DPO on pairs of critiques.

  python -m rubric_jax train --config=configs/zoo/critic_v.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Plain DPO. Columns: prompt (question and the answer under review), images, chosen and rejected (the
critiques with the higher and the lower score).

Ours: beta 0.1; the paper's is unknown.
"""

from configs import llava

METHOD = {
    "row": 14,
    "name": "Critic-V",
    "paper": "arXiv:2411.18203",
    "status": "partial",
    "missing": (
        "injecting errors; the Jaccard score of critiques; the loop of critic and reasoner"
    ),
}


def get_config():
    config = llava.get_config()
    config.objective = {"dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1}}
    return config
