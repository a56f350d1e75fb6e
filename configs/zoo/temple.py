"""TEMPLE: captions of ordered clips against captions of disordered ones, coarse to fine.

  python -m rubric_jax train --config=configs/zoo/temple.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

DPO in four stages, each on from the one before, then SFT. Columns: images (frames in order),
chosen, rejected (written from perturbed clips), level (1 to 4: perturbed in 16, 8, 4 or 2 groups).

Ours: beta 0.1; lr 1e-6 for the whole model (the paper: 5e-6 with LoRA, merged between stages); SFT
on all chosen captions, where the paper has 60k others (give the stage a `data` of its own).
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
    config.objective = {"dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1}}
    config.train.batch_size = 16
    stages = [
        {"name": f"groups_{groups}", "data": {"view": {"by": "level", "low": level, "high": level}}}
        for level, groups in enumerate((16, 8, 4, 2), 1)
    ]
    config.schedule = (*stages, {"name": "sft", "objective": {"nll": {"on": "chosen"}}})
    return config
