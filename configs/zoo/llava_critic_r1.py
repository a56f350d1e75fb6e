"""LLaVA-Critic-R1: GRPO on which of two answers is better.

  python -m rubric_jax train --config=configs/zoo/llava_critic_r1.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

GRPO, eight responses at temperature 1, reward 0.9 (right verdict) + 0.1 (format), KL 0.01, vision
tower trained. Columns: prompt (question, answers A and B; both orders), images, response_0 ..
response_7 (own samples), response_0_rewards .. {"answer": 0 or 1, "format": 0 or 1}.
"""

from configs import llava

METHOD = {
    "row": 60,
    "name": "LLaVA-Critic-R1",
    "paper": "arXiv:2509.00676",
    "status": "partial",
    "missing": (
        "judge questions from pairs, in both orders; sampling in every step; self-critique"
    ),
}


def get_config():
    config = llava.get_config()
    config.data.branches = tuple(f"response_{k}" for k in range(8))
    config.data.axes = ("answer", "format")
    config.objective = {
        "grpo": {
            "over": "response_*",
            "weights": {"answer": 0.9, "format": 0.1},
            "beta_kl": 0.01,
        },
    }
    config.optimizer.trainable = ((r".*", True),)
    config.train.batch_size = 128
    return config
