"""TEMPLE: captions of ordered clips against captions of disordered ones, coarse to fine.

  python -m rubric_jax train --config=configs/zoo/temple.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Plain DPO in four stages (16, 8, 4, 2 groups of clips), each from
--config.model.checkpoint=RUN/policy of the one before; then SFT: --config.objective.dpo.weight=0
--config.objective.nll.weight=1. Columns: images (frames in order), chosen, rejected (written from
perturbed clips).

Ours: beta 0.1; lr 1e-6 for the whole model (the paper: 5e-6 with LoRA, merged between stages).
"""

from configs import llava

METHOD = {
    "row": 74,
    "name": "TEMPLE",
    "paper": "arXiv:2503.16929",
    "status": "your data",
    "missing": "captions composed from clips, whole and dropped, shuffled or reversed",
}


def get_config():
    config = llava.get_config()
    config.objective = {
        "dpo": {"weight": 1.0, "win": "chosen", "lose": "rejected", "beta": 0.1},
        "nll": {"weight": 0.0, "on": "chosen"},
    }
    config.train.batch_size = 16
    return config
