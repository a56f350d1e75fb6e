"""DCD: one projector learns the chosen answers, another the rejected ones.

  python -m rubric_jax train --config=configs/zoo/dcd.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Stage A, as it stands: NLL of the chosen answers, only the projector is trained. Stage B, from the
same checkpoint, into another work directory: add --config.data.branches="('rejected',)"
--config.objective.nll.on=rejected. Columns: chosen, rejected, images.

Ours: the mean over tokens.
"""

from configs import llava

METHOD = {
    "row": 17,
    "name": "DCD",
    "paper": "arXiv:2504.08809",
    "status": "partial",
    "missing": "decoding by (1 + alpha) positive - alpha negative logits",
}


def get_config():
    config = llava.get_config()
    config.data.branches = ("chosen",)
    config.objective = {"nll": {"on": "chosen"}}
    config.optimizer.trainable = ((r"projector/.*", True), (r".*", False))
    config.train.reference = "none"
    return config
