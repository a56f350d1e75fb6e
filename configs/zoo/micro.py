"""MiCRo, first stage: ten reward heads on a frozen model, and a router that reads the prompt.

  python -m rubric_jax train --config=configs/zoo/micro.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

-log sum_k w_k(x) sigma(r_k(chosen) - r_k(rejected)) + 0.5 sum_k w_k log w_k: the second part
spreads the router. Columns: chosen, rejected, images. `score` on an exported model writes
heads/experts and heads/router; the score of a response is sum_k softmax(router)_k experts_k.
"""

from configs import llava

METHOD = {
    "row": 77,
    "name": "MiCRo",
    "paper": "arXiv:2505.24846",
    "status": "partial",
    "missing": "the second stage, which adapts the router's weights online to a user or a context",
}


def get_config():
    config = llava.get_config()
    config.model.heads = {
        "experts": {"head": "last", "outputs": 10},
        "router": {"head": "prompt", "outputs": 10},
    }
    pair = {"win": "chosen", "lose": "rejected"}
    config.objective = {
        "bt_mixture": {**pair, "head": "experts", "router": "router", "entropy": 0.5},
    }
    config.optimizer.learning_rate = 2e-3
    config.optimizer.trainable = ((r"heads/.*", True), (r".*", False))
    config.train.epochs = 1.0
    config.train.reference = "none"
    return config
