"""DPO and the likelihood of a rationale for the preference.

  python -m rubric_jax train --config=configs/zoo/rationales.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Its equation: DPO - gamma log pi(rationale | question, both answers). Columns: chosen, rejected,
rationale, comparison_prompt (the question, both answers, and which is preferable), images.

Ours: gamma 0.001, that of the code, whose form is logistic_nll.
"""

from configs import llava

METHOD = {
    "row": 46,
    "name": "Preference learning with rationales",
    "paper": "arXiv:2407.14477",
    "status": "your data",
    "missing": "the rationales, which a stronger model writes",
}


def get_config():
    config = llava.get_config()
    config.data.branches = ("chosen", "rejected", "rationale@comparison")
    config.objective = {
        "dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1},
        "nll": {"weight": 1e-3, "on": "rationale@comparison", "reduce": "sum"},
    }
    config.optimizer.learning_rate = 5e-7
    return config
