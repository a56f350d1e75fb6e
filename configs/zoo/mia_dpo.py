"""MIA-DPO: DPO on questions about one of several pictures, where the policy looked elsewhere.

  python -m rubric_jax train --config=configs/zoo/mia_dpo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Plain DPO, beta 0.1, one epoch, projector frozen. Columns: images (sequence, grid or picture in
picture), chosen (the true answer), rejected (the policy's own).

Ours: lr 1e-6 for the whole decoder (the paper: 5e-5 with LoRA).
"""

from configs import llava

METHOD = {
    "row": 35,
    "name": "MIA-DPO",
    "paper": "arXiv:2410.17637",
    "status": "your data",
    "missing": "composing several pictures, and the filter by attention",
}


def get_config():
    config = llava.get_config()
    config.objective = {"dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1}}
    config.optimizer.trainable = ((r"(vision|projector)/.*", False), (r".*", True))
    return config
