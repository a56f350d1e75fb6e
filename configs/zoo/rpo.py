"""RPO: DPO with supervised loss as regulariser against over-optimisation.

  python -m rubric_jax train --config=configs/zoo/rpo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Its equation: DPO - eta beta log pi(chosen), eta 0.005 and beta 0.01, so the weight is 5e-5. Its
form per token: weight 0.2, reduce "mean", beta 0.5. Columns: chosen, rejected, images.
"""

from configs import llava

METHOD = {
    "row": 47,
    "name": "RPO (SFT as adversarial regulariser)",
    "paper": "arXiv:2405.16436",
    "status": "works",
    "missing": "",
}


def get_config():
    config = llava.get_config()
    config.objective = {
        "dpo": {"win": "chosen", "lose": "rejected", "beta": 0.01},
        "nll": {"weight": 5e-5, "on": "chosen", "reduce": "sum"},
    }
    config.optimizer.learning_rate = 5e-7
    return config
