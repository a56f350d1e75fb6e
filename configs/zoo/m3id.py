"""M3ID+DPO: answers decoded with M3ID against answers given without the picture.

  python -m rubric_jax train --config=configs/zoo/m3id.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Plain DPO without labels. Columns: chosen (decoded with M3ID), rejected (sampled without the
picture), images; both are read under the picture.

Ours: beta 0.1.
"""

from configs import llava

METHOD = {
    "row": 29,
    "name": "M3ID",
    "paper": "arXiv:2403.14003",
    "status": "partial",
    "missing": "M3ID decoding itself; samples without the picture after the own first sentence",
}


def get_config():
    config = llava.get_config()
    config.objective = {"dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1}}
    return config
