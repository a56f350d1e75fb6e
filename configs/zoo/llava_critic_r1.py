"""LLaVA-Critic-R1: GRPO on which of two answers is better.

  python -m rubric_jax questions --config=configs/zoo/llava_critic_r1.py \
      --config.data.path=prefs.jsonl --out=instructions.jsonl
  python -m rubric_jax run --config=configs/zoo/llava_critic_r1.py --config.model.checkpoint=DIR \
      --config.pool.path=instructions.jsonl --workdir=RUN

GRPO, eight fresh responses at temperature 1, reward 0.9 (right verdict) + 0.1 (format), KL 0.01,
batch 128, vision tower trained. `questions` asks of every pair in both orders. The paper's best of
128 by self-critique belongs to answering, is no part of training, and is not here.

Ours: the wording of the question.
"""

from configs import llava

METHOD = {
    "row": 60,
    "name": "LLaVA-Critic-R1",
    "paper": "arXiv:2509.00676",
    "status": "works",
    "missing": "when answering: the best of 128 by self-critique",
}


def get_config():
    config = llava.get_config()
    form = {"rule": "pattern", "pattern": "(?s)<think>.*</think>.+", "whole": True}
    config.pool.writer = {
        "writer": "rules",
        "rules": {"answer": {"rule": "answer"}, "format": form},
    }
    config.judging.judge = {"judge": "rules"}
    config.data.branches = tuple(f"response_{k}" for k in range(8))
    config.data.axes = ("answer", "format")
    config.sample.count, config.sample.temperature, config.sample.top_k = 8, 1.0, 0
    config.pair.recipe = {"recipe": "group"}
    grpo = {"over": "response_*", "weights": {"answer": 0.9, "format": 0.1}, "beta_kl": 0.01}
    config.objective = {"grpo": {**grpo, "behaviour": "sampler"}}
    config.optimizer.trainable = ((r".*", True),)
    config.train.batch_size = 128
    config.train.reference = "step"
    config.online.updates = 1
    return config
