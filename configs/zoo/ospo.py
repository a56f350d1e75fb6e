"""OSPO: SimPO on object-weighted log-probabilities, and twice the likelihood.

  python -m rubric_jax train --config=configs/zoo/ospo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Its equation (v3): -log sigma(5 (r_w - r_l - 0.5)) + 2 NLL(chosen), r the weighted mean
log-probability. With every weight at 1, as here, it is SimPO + 2 NLL. Columns: chosen, rejected,
images.
"""

from configs import llava

METHOD = {
    "row": 7,
    "name": "OSPO",
    "paper": "github.com/KU-AGI/OSPO",
    "status": "partial",
    "missing": (
        "image tokens as responses; the object map as token weights (data have no column for them)"
    ),
}


def get_config():
    config = llava.get_config()
    config.objective = {
        "simpo": {"win": "chosen", "lose": "rejected", "beta": 5.0, "gamma": 2.5},
        "nll": {"weight": 2.0, "on": "chosen", "with": {"unweighted": {}}},
    }
    config.optimizer.learning_rate = 1e-5
    config.train.reference = "none"
    config.train.steps = 1000
    return config
