"""OPA-DPO: true and minimally edited answers against own ones, and against a masked picture.

  python -m rubric_jax train --config=configs/zoo/opa_dpo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Sequence-level reading of its six terms, all token weights 1, beta 0.1. First SFT (as
configs/zoo/dpa.py) on true answers and edits; that policy is start and reference. Columns:
reference_answer, edited, rejected (own), images.

Ours: anchors with a positive sign; the code mixes signs and scores positions one by one.
"""

from configs import llava

METHOD = {
    "row": 56,
    "name": "OPA-DPO",
    "paper": "arXiv:2501.09695",
    "status": "partial",
    "missing": (
        "weights by severity of tokens (data have no column for them); making the minimal edits"
    ),
}


def get_config():
    config = llava.get_config()
    config.data.branches = (
        "reference_answer",
        "edited",
        "rejected",
        "reference_answer@corrupted",
        "edited@corrupted",
    )
    config.data.contexts = {"corrupted": {"corruption": "token_mask", "share": 0.3, "patch": 1}}
    config.objective = {}
    for name in ("reference_answer", "edited"):
        pair = {"term": "dpo", "win": name, "beta": 0.1}
        config.objective[name] = {**pair, "lose": "rejected"}
        config.objective[f"{name}_seen"] = {**pair, "lose": f"{name}@corrupted", "weight": 0.2}
        config.objective[f"{name}_anchor"] = {"term": "anchor", "on": name, "beta": 0.1}
    config.train.epochs = 4.0
    return config
