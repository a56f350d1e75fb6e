"""WorldPM: a preference model, one linear head at the last token, on pairs by votes.

  python -m rubric_jax train --config=configs/zoo/worldpm.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Bradley-Terry: -log sigma(s(chosen) - s(rejected)), the whole model trained. Columns: chosen,
rejected, images. `score` on an exported model writes heads/reward; training reports bt/accuracy.

Ours: the learning rate.
"""

from configs import llava

METHOD = {
    "row": 64,
    "name": "WorldPM",
    "paper": "arXiv:2505.10527",
    "status": "works",
    "missing": "",
}


def get_config():
    config = llava.get_config()
    config.model.heads = {"reward": {"head": "last"}}
    config.objective = {"bt": {"win": "chosen", "lose": "rejected", "head": "reward"}}
    config.optimizer.learning_rate = 3e-6
    config.train.reference = "none"
    return config
