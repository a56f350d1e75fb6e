"""mllm-dpo: own samples, a judge's marks on five attributes, best against worst, plain DPO.

  python -m rubric_jax run --config=configs/zoo/mllm_dpo.py --config.model.checkpoint=DIR \
      --config.pool.path=instructions.jsonl --workdir=RUN \
      --config.judging.judge.model=NAME --config.judging.judge.base_url=http://HOST:8000/v1

The paper: DPO with beta 0.1 on 6k pairs of own samples, three epochs. Its baseline of SFT on the
best samples: --config.objective.dpo.weight=0 --config.objective.nll.weight=1.

Ours: the five attributes (the template "general"; another by --config.pool.writer.template=FILE
and --config.data.axes), four samples, lr 1e-6 for the whole model (the paper: 5e-5 with LoRA).
"""

from configs import rdpo_llava

METHOD = {
    "row": 24,
    "name": "mllm-dpo",
    "paper": "arXiv:2402.10884",
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
    config.sample.count = 4
    config.pair.recipe = {"recipe": "rubric", "unfailed": False, "margin": 0.0, "pairs": 1}
    config.objective = {
        "dpo": {"weight": 1.0, "win": "chosen", "lose": "rejected", "beta": 0.1},
        "nll": {"weight": 0.0, "on": "chosen"},
    }
    config.train.epochs = 3.0
    config.rounds.count = 1
    return config
