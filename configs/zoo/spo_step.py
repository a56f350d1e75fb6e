"""Step-aware preference on text: the next step from one prefix, ratios clipped.

  python -m rubric_jax train --config=configs/zoo/spo_step.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Its equation: -log sigma(10 (log rho_w - log rho_l)), rho the ratio clipped to 1 +- 0.1; outside
there is no gradient. Columns: prompt (with the steps so far), chosen, rejected (the next step),
images.
"""

from configs import llava

METHOD = {
    "row": 70,
    "name": "SPO (step-aware)",
    "paper": "arXiv:2406.04314",
    "status": "partial",
    "missing": (
        "the denoiser and its scorer of steps: here a step is a piece of text; branching from "
        "a prefix"
    ),
}


def get_config():
    config = llava.get_config()
    config.objective = {
        "clipped_dpo": {"win": "chosen", "lose": "rejected", "beta": 10.0, "clip": 0.1},
    }
    return config
