"""Provably robust DPO: unbiased where a known share of the labels is flipped.

  python -m rubric_jax train --config=configs/zoo/robust_dpo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Its equation: ((1 - e) l(w, l) - e l(l, w)) / (1 - 2e), beta 0.1, e 0.1. Columns: chosen, rejected,
images. The conservative form is dpo with label_smoothing.
"""

from configs import llava

METHOD = {
    "row": 42,
    "name": "Robust DPO (rDPO)",
    "paper": "arXiv:2403.00409",
    "status": "works",
    "missing": "",
}


def get_config():
    config = llava.get_config()
    config.objective = {
        "robust": {"win": "chosen", "lose": "rejected", "beta": 0.1, "flip_rate": 0.1}
    }
    return config
