"""Supervised training as implicit-reward learning, with a divergence that holds.

  python -m rubric_jax train --config=configs/zoo/reward_bridge.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN
  python -m rubric_jax export --workdir=RUN --out=HF_DIR

Stage 1, here: -phi(log-ratio) of demonstrations, phi Pearson's z - z^2/4. Stage 2:
configs/llava.py with --config.model.checkpoint=HF_DIR. The paper's other remedy is a lower
learning rate with phi "linear", which is SFT. Columns: chosen, images.

Ours: scale 0.01, because a summed log-ratio passes Pearson's turning point at 2 at once.
"""

from configs import llava

METHOD = {
    "row": 63,
    "name": "Implicit reward bridge (SFT and DPO)",
    "paper": "arXiv:2507.00018",
    "status": "works",
    "missing": "",
}


def get_config():
    config = llava.get_config()
    config.data.branches = ("chosen",)
    config.objective = {"sft_phi": {"on": "chosen", "phi": "pearson", "scale": 0.01}}
    return config
