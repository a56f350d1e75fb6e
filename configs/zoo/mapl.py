"""MAPL: DPO on answers, on instructions that an answer follows or not, and an order of gaps.

  python -m rubric_jax train --config=configs/zoo/mapl.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Three terms: DPO(chosen, rejected); DPO of one answer under instructions that it satisfies against
instructions that it violates; and the pair's gap is larger under instructions that favour chosen
more clearly. Columns: chosen, rejected, answer, satisfied_prompt, violated_prompt, favoured_prompt,
images.

Ours: weights 1, beta 0.1; the third term, -log sigma(beta (gap_favoured - gap)), is inferred.
"""

from configs import llava

METHOD = {
    "row": 33,
    "name": "MAPL",
    "paper": "",
    "status": "your data",
    "missing": "the generators of instructions that an answer satisfies or violates",
}


def get_config():
    config = llava.get_config()
    config.data.branches = (
        "chosen",
        "rejected",
        "answer@satisfied",
        "answer@violated",
        "chosen@favoured",
        "rejected@favoured",
    )
    config.objective = {
        "dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1},
        "intra": {
            "term": "dpo",
            "win": "answer@satisfied",
            "lose": "answer@violated",
            "beta": 0.1,
        },
        "inter": {
            "term": "gap_order",
            "hard_win": "chosen@favoured",
            "hard_lose": "rejected@favoured",
            "easy_win": "chosen",
            "easy_lose": "rejected",
            "beta": 0.1,
        },
    }
    return config
