"""SPORT: DPO on single steps of a tool-using agent, from one prefix.

  python -m rubric_jax train --config=configs/zoo/sport.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN
  python -m rubric_jax export --workdir=RUN --out=HF_DIR

Plain DPO. Columns: prompt (the conversation so far, with what the tools returned), chosen and
rejected (the next step alone: only they are trained on), images. Then the next round of tasks from
HF_DIR.

Ours: beta 0.1; the paper gives none.
"""

from configs import llava

METHOD = {
    "row": 11,
    "name": "SPORT",
    "paper": "arXiv:2504.21561",
    "status": "your data",
    "missing": "running the candidates' code, and the verifier that names the best step",
}


def get_config():
    config = llava.get_config()
    config.data.max_prompt = 8192
    config.objective = {"dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1}}
    return config
