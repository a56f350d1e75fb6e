"""SparsePO with every mask at 1: token-level DPO with the divergence in the logit.

  python -m rubric_jax train --config=configs/zoo/sparsepo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Its equation: -log sigma(beta (u - d)) + L1 of the masks, u the masked log-ratios and d the masked
negative divergences. With masks of 1 it is TDPO's first form. Columns: chosen, rejected, images.

The paper's beta: 0.8 for IMDB and TL;DR, 0.1 for HH.
"""

from configs import llava

METHOD = {
    "row": 32,
    "name": "SparsePO (MaPO)",
    "paper": "arXiv:2410.05102",
    "status": "partial",
    "missing": "the masks over tokens, learned or from activations: here all are 1",
}


def get_config():
    config = llava.get_config()
    config.objective = {
        "tdpo": {"win": "chosen", "lose": "rejected", "beta": 0.1, "alpha": 1.0, "detach": False},
    }
    config.train.reference = "step"
    return config
