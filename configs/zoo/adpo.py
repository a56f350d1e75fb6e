"""ADPO of CAT: DPO against ambiguous answers, with a little supervised loss.

  python -m rubric_jax train --config=configs/zoo/adpo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Its equation: DPO + 0.1 NLL(chosen), beta 0.1, lr 4e-6. Columns: chosen (rewritten precisely),
rejected (ambiguous), images.

Ours: the NLL is a mean over tokens; the paper does not say. The whole model is trained, not LoRA.
"""

from configs import llava

METHOD = {
    "row": 13,
    "name": "CAT / ADPO",
    "paper": "arXiv:2403.04640",
    "status": "partial",
    "missing": (
        "audio and the clue aggregator; the judge that marks and rewrites ambiguous answers"
    ),
}


def get_config():
    config = llava.get_config()
    config.objective = {
        "dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1},
        "nll": {"weight": 0.1, "on": "chosen"},
    }
    return config
