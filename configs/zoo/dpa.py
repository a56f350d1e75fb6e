"""DPA: supervised training on the best of K answers along a direction named in the prompt.

  python -m rubric_jax train --config=configs/zoo/dpa.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN
  python -m rubric_jax export --workdir=RUN --out=HF_DIR

No preference loss: -log pi(y | prompt, v), y the answer with the largest v . rewards. Columns:
prompt (with v, such as "helpfulness*95 + verbosity*31"), chosen, images. Sample again from
HF_DIR and repeat. A reward model of many axes is the term `regression` on a head.

Ours: the mean over tokens.
"""

from configs import llava

METHOD = {
    "row": 71,
    "name": "DPA (directional)",
    "paper": "arXiv:2402.18571",
    "status": "your data",
    "missing": "choosing the best of K along a direction drawn per prompt, by the rewards",
}


def get_config():
    config = llava.get_config()
    config.data.branches = ("chosen",)
    config.objective = {"nll": {"on": "chosen"}}
    config.train.reference = "none"
    return config
