"""MPO as in InternVL3: right against wrong answers, DPO + BCO + likelihood.

  python -m rubric_jax run --config=configs/zoo/internvl3_mpo.py --config.model.checkpoint=DIR \
      --config.pool.path=instructions.jsonl --workdir=RUN \
      --config.judging.judge.model=NAME --config.judging.judge.base_url=http://HOST:8000/v1

Its equation: 0.8 DPO + 0.2 BCO + 1.0 NLL(chosen), BCO with its running baseline
(arXiv:2411.10442). Pairs: parsed final answers, right x wrong, 15 an instruction at most; an
answer that cannot be parsed is wrong. The instructions need the column answer. For those without:
--config.pair.recipe.recipe=continuation --config.pair.recipe.pairs=1.

Ours: NLL per response; the code averages over the tokens of the batch (reduce "batch_tokens"). The
best of 8 by a process scorer, in its tables, belongs to answering, and is not here.
"""

from configs import rdpo_llava

METHOD = {
    "row": 20,
    "name": "InternVL3 (MPO)",
    "paper": "arXiv:2504.10479",
    "status": "works",
    "missing": "when answering: the best of 8 by a process scorer",
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
    config.pair.recipe = {"recipe": "outcome", "pairs": 15}
    pair = {"win": "chosen", "lose": "rejected", "beta": 0.1}
    config.objective = {
        "dpo": {"weight": 0.8, **pair},
        "bco": {"weight": 0.2, **pair},
        "nll": {"on": "chosen"},
    }
    config.optimizer.learning_rate = 2e-7
    config.optimizer.weight_decay = 0.05
    config.optimizer.trainable = ((r".*", True),)
    config.train.batch_size = 256
    config.rounds.count = 1
    return config
