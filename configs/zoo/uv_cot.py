"""UV-CoT: DPO with the gap of the two chains' scores as margin.

  python -m rubric_jax train --config=configs/zoo/uv_cot.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN
  python -m rubric_jax export --workdir=RUN --out=HF_DIR

Its equation: -log sigma(beta gap - (g(s_w) - g(s_l))), beta 0.1, four iterations, each on a part
of the questions and from the policy before it (--config.model.checkpoint=HF_DIR). Columns:
images (picture and crop), chosen, rejected, margin = g(s_w) - g(s_l).

Ours: g is not in the paper; take kappa times the score. The release leaves the margin out and
trains 0.1 dpo + 0.9 nll with reduce "sum".
"""

from configs import llava

METHOD = {
    "row": 9,
    "name": "UV-CoT",
    "paper": "arXiv:2504.18397",
    "status": "your data",
    "missing": "the chains of boxes and crops, and their scores",
}


def get_config():
    config = llava.get_config()
    config.objective = {"dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1}}
    config.optimizer.learning_rate = 5e-7
    return config
