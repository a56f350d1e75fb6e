"""Accelerated preference optimisation: iterative DPO with Nesterov's step between rounds.

  python -m rubric_jax run --config=configs/zoo/apo.py --config.model.checkpoint=DIR \
      --config.pool.path=instructions.jsonl --workdir=RUN \
      --config.judging.judge.model=NAME --config.judging.judge.base_url=http://HOST:8000/v1

One run per round (beta 0.01, 0.1, 1.0), five samples, best against worst. Before round t + 1, with
the trained policies of this round and the one before (at first, the base) and alpha 0.3:

  from rubric_jax import models
  from rubric_jax.models import soup
  soup.write("next", ["RUN_t/round_1/policy", "RUN_t-1/round_1/policy"], [1.3, -0.3],
             models.build("llava", models.directory("RUN_t/round_1/policy")))

and --config.model.checkpoint=next, start and reference of the round. The result is the last
round's policy, not extrapolated. Ours: b1 0 makes AdamW RMSProp with bias correction; the rubric
is the reward.
"""

from configs import rdpo_llava

METHOD = {
    "row": 57,
    "name": "APO (Accelerated)",
    "paper": "arXiv:2410.06293",
    "status": "works",
    "missing": "",
}


def get_config():
    config = rdpo_llava.get_config()
    config.pool.writer = {"writer": "template", "template": "general"}
    config.data.axes = (
        "visual_fidelity",
        "contextual_relevance",
        "object_accuracy",
        "hallucination",
        "style",
    )
    config.sample.count = 5
    config.pair.recipe = {"recipe": "rubric", "unfailed": False, "margin": 0.0, "pairs": 1}
    config.objective = {"dpo": {"win": "chosen", "lose": "rejected", "beta": 0.01}}
    config.optimizer.learning_rate = 5e-7
    config.optimizer.knobs = {"b1": 0.0}
    config.train.batch_size = 64
    config.rounds.count = 1
    return config
