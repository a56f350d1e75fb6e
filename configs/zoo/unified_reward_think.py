"""UnifiedReward-Think, last stage: GRPO on verdicts that SFT got wrong.

  python -m rubric_jax train --config=configs/zoo/unified_reward_think.py \
      --config.model.checkpoint=DIR --config.data.path=prefs.jsonl --workdir=RUN

Stages 0 and 1 are SFT (as configs/zoo/dpa.py) on reasoning traces, then on own right ones. Stage
2, here: GRPO, eight responses, right verdict + format, KL 0.04, lr 1e-6, on the failures. Columns:
prompt (two candidates), images, response_0 .. response_7, response_0_rewards .. {"match": ..,
"format": ..}.
"""

from configs import llava

METHOD = {
    "row": 61,
    "name": "UnifiedReward-Think",
    "paper": "arXiv:2505.03318",
    "status": "partial",
    "missing": "the split by right and wrong verdicts; sampling in every step",
}


def get_config():
    config = llava.get_config()
    config.data.branches = tuple(f"response_{k}" for k in range(8))
    config.data.axes = ("match", "format")
    config.objective = {
        "grpo": {"over": "response_*", "weights": [1.0, 1.0], "beta_kl": 0.04},
    }
    return config
