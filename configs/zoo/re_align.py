"""Re-Align: DPO on the pair, and on the chosen answer under its own against a retrieved picture.

  python -m rubric_jax train --config=configs/zoo/re_align.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Its equation: DPO(chosen, rejected) + DPO(chosen, chosen@retrieved), weights 1, beta 0.1. Columns:
chosen, rejected, images, and other_images, the picture that was retrieved for the rewriting.
Without that column the nearest picture of the data is taken (give `embeddings`).

The release scores the likeliest token that is not the label on the second and third branch; this
is the equation. The whole model is trained, not LoRA.
"""

from configs import llava

METHOD = {
    "row": 10,
    "name": "Re-Align (retrieval rDPO)",
    "paper": "arXiv:2502.13146",
    "status": "your data",
    "missing": (
        "masking spans of the chosen answer and filling them in under the retrieved picture"
    ),
}


def get_config():
    config = llava.get_config()
    config.data.branches = ("chosen", "rejected", "chosen@other")
    config.data.contexts = {"other": {"corruption": "nearest"}}
    config.objective = {
        "dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1},
        "retrieved": {"term": "dpo", "win": "chosen", "lose": "chosen@other", "beta": 0.1},
    }
    return config
