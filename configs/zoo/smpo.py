"""SmPO on text: the logit is scaled by how sure the label is, so ties teach nothing.

  python -m rubric_jax train --config=configs/zoo/smpo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Its equation: -log sigma(10 (2p - 1) beta gap), p the softmax of both normalised scores. Columns:
chosen (of the higher score), rejected, chosen_rewards and rejected_rewards {"score": in [0, 1]},
images.

Ours: beta 0.1 (x 10) for text; the paper's 2000 is for squared errors.
"""

from configs import llava

METHOD = {
    "row": 41,
    "name": "SmPO-Diffusion",
    "paper": "arXiv:2506.02698",
    "status": "partial",
    "missing": "the diffusion likelihood and its inversion: here responses are text",
}


def get_config():
    config = llava.get_config()
    config.data.axes = ("score",)
    config.objective = {
        "smpo": {"win": "chosen", "lose": "rejected", "beta": 1.0, "weights": [1.0], "scale": 1.0},
    }
    return config
