"""LLaVA with MPO: 0.8 DPO + 0.2 BCO with its running baseline + 1.0 NLL of the chosen response.

  python -m rubric_jax train --config=configs/llava_mpo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Wang et al., arXiv:2411.10442.
"""

from configs import llava


def get_config():
    config = llava.get_config()
    pair = {"win": "chosen", "lose": "rejected", "beta": 0.1}
    config.objective = {
        "dpo": {"weight": 0.8, **pair},
        "bco": {"weight": 0.2, **pair},
        "nll": {"weight": 1.0, "on": "chosen"},
    }
    return config
