"""Curry-DPO: pairs from easy to hard, each stage from the policy before it.

  python -m rubric_jax train --config=configs/zoo/curry_dpo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Of four rated answers the best against the worst, then the third, then the second: three files,
three commands, the second and third with --config.model.checkpoint=RUN/policy of the one before,
which is then the reference too. Columns: chosen, rejected, images.

Ours: beta 0.1. The control: the same pairs shuffled, as many updates.
"""

from configs import llava

METHOD = {
    "row": 76,
    "name": "Curry-DPO",
    "paper": "arXiv:2403.07230",
    "status": "your data",
    "missing": "cutting rated lists into three files by their gap",
}


def get_config():
    config = llava.get_config()
    config.objective = {"dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1}}
    return config
