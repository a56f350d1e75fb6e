"""Reward preference optimisation on text: soft labels, and supervised loss on the reference.

  python -m rubric_jax train --config=configs/zoo/lambda_harmonic.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --config.data.eval_path=heldout.jsonl --workdir=RUN

Its equation: NLL(reference) - (l log sigma(d) + (1 - l) log sigma(-d)), l drawn with probability
sigma(r(reference) - r(own)); here l is replaced by that probability, its expectation. Columns:
chosen (the reference), rejected (own sample), chosen_rewards and rejected_rewards {"harmonic":
..}, images.

Every 40 of 400 steps the policy is measured, and the best one kept. Ours: beta 0.1 for text, and
as measure the accuracy on held-out pairs (the paper: mean reward of samples).
"""

from configs import llava

METHOD = {
    "row": 54,
    "name": "RPO / lambda-Harmonic",
    "paper": "arXiv:2407.12164",
    "status": "partial",
    "missing": (
        "the diffusion likelihood: here responses are text; the best checkpoint is chosen by "
        "held-out pairs, not by the reward of samples"
    ),
}


def get_config():
    config = llava.get_config()
    config.data.axes = ("harmonic",)
    config.objective = {
        "soft": {"win": "chosen", "lose": "rejected", "beta": 0.1, "weights": [1.0], "scale": 1.0},
        "nll": {"on": "chosen"},
    }
    config.train.steps = 400
    config.train.eval_every = 40
    config.train.keep_best = 1
    return config
