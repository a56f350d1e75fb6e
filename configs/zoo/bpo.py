"""BPO, blind preference optimization: a second rejected answer, given without looking.

  python -m rubric_jax train --config=configs/zoo/bpo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Its equation: DPO(chosen, rejected) + DPO(chosen, blind), all read under the clean input, weights
1, beta 0.1. Columns: chosen, rejected, blind, images; blind is the policy's own answer with a
modality removed (which one the paper leaves open).
"""

from configs import llava

METHOD = {
    "row": 4,
    "name": "BPO (MMSafe-PO)",
    "paper": "arXiv:2503.14189",
    "status": "your data",
    "missing": (
        "the blind answers: sample them from instructions of which one modality is removed"
    ),
}


def get_config():
    config = llava.get_config()
    config.data.branches = ("chosen", "rejected", "blind")
    config.objective = {
        "dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1},
        "blind": {"term": "dpo", "win": "chosen", "lose": "blind", "beta": 0.1},
    }
    return config
