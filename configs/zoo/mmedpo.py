"""MMedPO: every pair has a clinical weight, and the rejected side a picture of its own.

  python -m rubric_jax train --config=configs/zoo/mmedpo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Its equation: weight x DPO, where the rejected response is read under its own picture. Columns:
chosen, rejected (in visual rows the chosen text once more), images, maps (where the lesion is; all
black in text rows, which leaves the picture as it is) and weight (the clipped z-score of the
models' scores).

Ours: a weight is at least 0, so the lower clip is; noise step 500; the whole model is trained, not
LoRA. The released data hold raw weights, some of them 0.
"""

from configs import llava

METHOD = {
    "row": 1,
    "name": "MMedPO",
    "paper": "arXiv:2412.06141",
    "status": "your data",
    "missing": "the scores of medical models and of the lesion model",
}


def get_config():
    config = llava.get_config()
    config.data.branches = ("chosen", "rejected@corrupted")
    config.data.contexts = {
        "corrupted": {"corruption": "region_noise", "maps": "maps", "step": 500}
    }
    config.objective = {"dpo": {"win": "chosen", "lose": "rejected@corrupted", "beta": 0.1}}
    config.optimizer.learning_rate = 1e-7
    config.train.epochs = 3.0
    return config
