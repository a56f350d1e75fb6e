"""VPO, offline: DPO, and a bonus for the log-ratio of the calibration answer.

  python -m rubric_jax train --config=configs/zoo/vpo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Its equation, derived: DPO - alpha beta E[log-ratio of the calibration answer]; offline that is the
chosen one (pessimism). Online (optimism): a further branch, sampled from the reference, and coef
+alpha beta. Columns: chosen, rejected, images.

Ours: alpha 0.5, beta 0.1; the paper's are unknown.
"""

from configs import llava

METHOD = {
    "row": 62,
    "name": "VPO (value-incentivised)",
    "paper": "arXiv:2405.19320",
    "status": "works",
    "missing": "",
}


def get_config():
    config = llava.get_config()
    config.objective = {
        "dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1},
        "shift": {"on": "chosen", "coef": -0.05},
    }
    return config
