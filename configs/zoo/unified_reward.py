"""UnifiedReward, the understanding half: DPO on the pair that a judge sifted out of ten samples.

  python -m rubric_jax train --config=configs/zoo/unified_reward.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

DPO, beta 0.1, lr 5e-7, three epochs. Columns: chosen (the best mark among the winners of five
disjoint pairs), rejected (the worst among the losers), images. The SFT part of the release has
weight 0.
"""

from configs import llava

METHOD = {
    "row": 15,
    "name": "UnifiedReward",
    "paper": "arXiv:2503.05236",
    "status": "partial",
    "missing": (
        "the generative half (diffusion); training the judge; ranking ten samples and sifting them"
    ),
}


def get_config():
    config = llava.get_config()
    config.objective = {"dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1}}
    config.optimizer.learning_rate = 5e-7
    config.train.epochs = 3.0
    return config
