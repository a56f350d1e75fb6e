"""Vision-R1: GRPO on format, precision and recall of boxes.

  python -m rubric_jax train --config=configs/zoo/vision_r1.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

GRPO with the sum of three rewards, four responses, standard deviation and k3. Columns: response_0
.. response_3, response_0_rewards .. with format, precision and recall, images. The responses are
the policy's own (the command `sample`).

Ours: beta_kl 0.04, not in the source.
"""

from configs import llava

METHOD = {
    "row": 38,
    "name": "Vision-R1 (Griffon team)",
    "paper": "arXiv:2503.18013",
    "status": "partial",
    "missing": (
        "matching boxes for precision and recall; thresholds by step; sampling in every step"
    ),
}


def get_config():
    config = llava.get_config()
    config.data.branches = tuple(f"response_{k}" for k in range(4))
    config.data.axes = ("format", "precision", "recall")
    config.objective = {
        "grpo": {"over": "response_*", "weights": [1.0, 1.0, 1.0], "beta_kl": 0.04},
    }
    return config
