"""PRO: each answer of a ranked list against all below it, without a reference.

  python -m rubric_jax run --config=configs/zoo/pro.py --config.model.checkpoint=DIR \
      --config.pool.path=instructions.jsonl --workdir=RUN \
      --config.judging.judge.model=NAME --config.judging.judge.base_url=http://HOST:8000/v1

Its equation: sum_k -log(exp(s_k T_kk) / (exp(s_k T_kk) + sum_{i>k} exp(s_i T_ki))) + 0.05 (n-1)^2
NLL(best), s the mean log-probability, T_ki the gap in reward, T_kk the largest. Lists: own
samples, ranked by the rubric; or `train` with the columns response_0 .. and response_0_rewards ..
of your own.

Ours: weights of sum 5: the rewards' scale is a temperature.
"""

from configs import rdpo_llava

METHOD = {
    "row": 75,
    "name": "PRO",
    "paper": "arXiv:2306.17492",
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
    config.data.branches = tuple(f"response_{k}" for k in range(4))
    config.sample.count = 4
    config.pair.recipe = {"recipe": "listwise", "count": 4}
    config.objective = {"pro": {"over": "response_*", "weights": [1.0] * 5, "sft": 0.05}}
    config.optimizer.learning_rate = 5e-6
    config.train.epochs = 2.0
    config.train.reference = "none"
    config.rounds.count = 1
    return config
