"""DPO, IPO, KTO and CPO on the same pairs, from different starts.

  python -m rubric_jax train --config=configs/zoo/insights.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

One loss at a time: --config.objective.dpo.weight=0 --config.objective.kto.weight=1; one start at a
time: --config.model.checkpoint (pretrained, SFT, instruct). Columns: chosen, rejected, images.

Ours: one beta each (the losses are on different scales, so sweep it); KTO's baseline from the
rejected answer under another row's picture.
"""

from configs import llava

METHOD = {
    "row": 78,
    "name": "Insights into Alignment",
    "paper": "arXiv:2404.14723",
    "status": "works",
    "missing": "",
}


def get_config():
    config = llava.get_config()
    config.data.branches = ("chosen", "rejected", "rejected@other")
    config.data.contexts = {"other": {"corruption": "swap"}}
    pair = {"win": "chosen", "lose": "rejected", "beta": 0.1}
    config.objective = {
        "dpo": {"weight": 1.0, **pair},
        "ipo": {"weight": 0.0, **pair},
        "kto": {"weight": 0.0, **pair, "kl": "rejected@other"},
        "cpo": {"weight": 0.0, **pair},
    }
    return config
