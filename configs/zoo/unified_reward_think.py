"""UnifiedReward-Think, last stage: GRPO on verdicts that SFT got wrong.

  python -m rubric_jax run --config=configs/zoo/unified_reward_think.py \
      --config.model.checkpoint=DIR --config.pool.path=instructions.jsonl --workdir=RUN

Stages 0 and 1 are SFT (as configs/zoo/dpa.py) on reasoning traces, then on own right ones. Stage
2, here: GRPO, eight fresh responses, right verdict + format, KL 0.04, lr 1e-6, on the failures:
questions about two candidates (the command `questions` writes them) that stage 1 answers wrongly.
"""

from configs.zoo import llava_critic_r1

METHOD = {
    "row": 61,
    "name": "UnifiedReward-Think",
    "paper": "arXiv:2505.03318",
    "status": "your data",
    "missing": "the reasoning traces of stage 0; the split by right and wrong verdicts",
}


def get_config():
    config = llava_critic_r1.get_config()
    config.data.axes = ("match", "format")
    form = config.pool.writer.rules.format.to_dict()
    config.pool.writer.rules = {"match": {"rule": "answer"}, "format": form}
    grpo = {"over": "response_*", "weights": [1.0, 1.0], "beta_kl": 0.04}
    config.objective = {"grpo": {**grpo, "behaviour": "sampler"}}
    config.optimizer.trainable = ((r"vision/.*", False), (r".*", True))
    config.train.batch_size = 8
    return config
