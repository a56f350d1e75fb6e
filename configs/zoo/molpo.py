"""MolPO-like: the answer under the right input against a perturbed one, without a reference.

  python -m rubric_jax train --config=configs/zoo/molpo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

The early code: NLL + 0.5 hinge(r_w - r_l - gamma) + two anchors, r the mean log-probability, beta
and gamma 1. Here the first two terms, with pictures for graphs. Columns: chosen, images,
corrupted_images. Rows whose two pictures are equal have a constant hinge of 2 without gradient.
"""

from configs import llava

METHOD = {
    "row": 18,
    "name": "MolPO (Mol-LLM)",
    "paper": "arXiv:2502.02810",
    "status": "partial",
    "missing": "anchors on the mean log-probability; running margins per task; a graph encoder",
}


def get_config():
    config = llava.get_config()
    config.data.branches = ("chosen", "chosen@corrupted")
    config.objective = {
        "nll": {"on": "chosen"},
        "simpo_hinge": {
            "weight": 0.5,
            "win": "chosen",
            "lose": "chosen@corrupted",
            "beta": 1.0,
            "gamma": 1.0,
        },
    }
    config.train.reference = "none"
    return config
