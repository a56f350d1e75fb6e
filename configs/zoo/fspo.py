"""FSPO: a prompt shows a user's preferences, and IPO fits the next one.

  python -m rubric_jax train --config=configs/zoo/fspo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Stage 1, SFT on chosen: --config.objective.ipo.weight=0 --config.objective.nll.weight=1
--config.optimizer.learning_rate=1e-7. Stage 2, from its policy, as it stands: IPO, (gap - 1/(2
beta))^2 with beta 0.01, lr 1e-6. Columns: prompt (four preferences and the question), chosen,
rejected, images.
"""

from configs import llava

METHOD = {
    "row": 58,
    "name": "FSPO",
    "paper": "arXiv:2502.19312",
    "status": "your data",
    "missing": "prompts with four labelled preferences of the same user",
}


def get_config():
    config = llava.get_config()
    config.data.max_prompt = 8192
    config.objective = {
        "ipo": {"weight": 1.0, "win": "chosen", "lose": "rejected", "beta": 0.01},
        "nll": {"weight": 0.0, "on": "chosen"},
    }
    return config
