"""OPA-DPO: true and minimally edited answers against own ones, and against a masked picture.

  python -m rubric_jax train --config=configs/zoo/opa_dpo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Sequence-level reading of its six terms, beta 0.1. First SFT (as configs/zoo/dpa.py) on true answers
and edits; that policy is start and reference. Columns: reference_answer, edited, rejected (own),
edited_spans and rejected_spans (severity), images. Spans named "severity" weigh 2.5, 2, 1.5 or 1,
the gravest most; those named "recognition", in edited_spans, weigh 3 in the term of the picture.

Ours: anchors with a positive sign; the code mixes signs and scores positions one by one.
"""

from configs import llava

METHOD = {
    "row": 56,
    "name": "OPA-DPO",
    "paper": "arXiv:2501.09695",
    "status": "your data",
    "missing": "making the minimal edits, with the severity and the kind of each error",
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
    config.objective["edited"]["with"] = {"spans": {"name": "severity"}}
    config.objective["edited_seen"]["with"] = {"spans": {"name": "recognition", "inside": 3.0}}
    config.train.epochs = 4.0
    return config
