"""Flex-DPO: a beta for each side, so that the rejected one falls less.

  python -m rubric_jax train --config=configs/zoo/flex_dpo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Its equation: -log sigma(beta_w log-ratio(chosen) - beta_l log-ratio(rejected)), best with beta_l
near 0.08. Columns: chosen, rejected, images.

Ours: beta_w 0.1. The paper's study of a toy policy is not here.
"""

from configs import llava

METHOD = {
    "row": 49,
    "name": "Flex-DPO (3D-properties)",
    "paper": "arXiv:2406.07327",
    "status": "works",
    "missing": "",
}


def get_config():
    config = llava.get_config()
    config.objective = {
        "flex_dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1, "beta_lose": 0.08}
    }
    return config
