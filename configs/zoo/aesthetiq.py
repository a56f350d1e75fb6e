"""AesthetiQ: layouts written as text, DPO on the best and the worst rendered one.

  python -m rubric_jax train --config=configs/zoo/aesthetiq.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Plain DPO with the SFT policy as reference. Columns: prompt and images (the elements), chosen and
rejected (layout strings; coordinates as digits, for the vocabulary is the checkpoint's).

Ours: beta 0.1; the paper's is unknown.
"""

from configs import llava

METHOD = {
    "row": 27,
    "name": "AesthetiQ (AAPA)",
    "paper": "bloomberry.github.io/AesthetiQ",
    "status": "partial",
    "missing": (
        "rendering layouts for the judge; special tokens for coordinates; the quality filter"
    ),
}


def get_config():
    config = llava.get_config()
    config.objective = {"dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1}}
    return config
