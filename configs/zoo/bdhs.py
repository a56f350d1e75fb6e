"""BDHS: rejected answers are the policy's own, made where it hardly sees the picture.

  python -m rubric_jax train --config=configs/zoo/bdhs.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Plain DPO. Columns: chosen, rejected (tails of sentences completed under masked image tokens),
images. The recipe "continuation" is a relative: half of the answer, without any picture.

Ours: beta 0.1.
"""

from configs import llava

METHOD = {
    "row": 16,
    "name": "BDHS",
    "paper": "arXiv:2407.02477",
    "status": "your data",
    "missing": "generation that sees one per cent of the image tokens, sentence by sentence",
}


def get_config():
    config = llava.get_config()
    config.objective = {"dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1}}
    return config
