"""M3ID+DPO: answers decoded with M3ID against answers given without the picture.

  python -m rubric_jax run --config=configs/zoo/m3id.py --config.model.checkpoint=DIR \
      --config.pool.path=instructions.jsonl --workdir=RUN

Every instruction is answered once with M3ID decoding (chosen), and its answer's first sentence is
continued without the picture (rejected); both are read under the picture. Plain DPO without labels:
the judge is a rule that finds nothing wrong.

Ours: beta 0.1, and M3ID's constants, which the source does not give.
"""

from configs import rdpo_llava

METHOD = {
    "row": 29,
    "name": "M3ID",
    "paper": "arXiv:2403.14003",
    "status": "works",
    "missing": "",
}


def get_config():
    config = rdpo_llava.get_config()
    everything = {"rule": "pattern", "pattern": ""}
    config.pool.writer = {"writer": "rules", "rules": {"nothing": everything}}
    config.judging.judge = {"judge": "rules"}
    config.sample.count, config.sample.temperature, config.sample.top_k = 1, 0.0, 0
    config.sample.contrast = {
        "contrast": "m3id",
        "forget": 0.02,
        "sure": 0.5,
        "context": {"corruption": "drop"},
    }
    config.pair.recipe = {"recipe": "continuation", "of": "first", "cut": "sentence"}
    config.objective = {"dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1}}
    config.rounds.count = 1
    return config
