"""OSPO: SimPO on object-weighted log-probabilities, and twice the likelihood.

  python -m rubric_jax train --config=configs/zoo/ospo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Its equation (v3): -log sigma(5 (r_w - r_l - 0.5)) + 2 NLL(chosen), r the mean log-probability under
token weights: 1, and up to 2 on the objects. Columns: chosen, rejected, chosen_spans and
rejected_spans (words of objects), images.
"""

from configs import llava

METHOD = {
    "row": 7,
    "name": "OSPO",
    "paper": "github.com/KU-AGI/OSPO",
    "status": "partial",
    "missing": "image tokens as responses, and the map of objects on them: here responses are text",
}


def get_config():
    config = llava.get_config()
    config.objective = {
        "simpo": {
            "win": "chosen",
            "lose": "rejected",
            "beta": 5.0,
            "gamma": 2.5,
            "with": {"spans": {"inside": 2.0}},
        },
        "nll": {"weight": 2.0, "on": "chosen"},
    }
    config.optimizer.learning_rate = 1e-5
    config.train.reference = "none"
    config.train.steps = 1000
    return config
