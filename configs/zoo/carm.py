"""CARM: a reward model that reads the criterion, on twins whose preference it turns round.

  python -m rubric_jax train --config=configs/zoo/carm.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

One instruction, two answers, two criteria: by the first answer_0 is better, by the second answer_1.
Bradley-Terry on a head, once under each: -log sigma(s(0|x) - s(1|x)) - log sigma(s(1|y) - s(0|y)).
A scorer that does not read the criterion is at 50 %. Columns: prompt, answer_0, answer_1, images,
criterion_x_prompt and criterion_y_prompt (the instruction with the criterion).

Ours: the learning rate, the head at the last token.
"""

from configs import llava

METHOD = {
    "row": 66,
    "name": "CARM (context-aware)",
    "paper": "arXiv:2407.14916",
    "status": "your data",
    "missing": "the twins (microsoft/rpr has them as text); choosing the criterion itself",
}


def get_config():
    config = llava.get_config()
    config.data.branches = tuple(f"answer_{k}@criterion_{c}" for c in ("x", "y") for k in (0, 1))
    config.model.heads = {"reward": {"head": "last"}}
    bt = {"term": "bt", "head": "reward"}
    config.objective = {
        "x": {**bt, "win": "answer_0@criterion_x", "lose": "answer_1@criterion_x"},
        "y": {**bt, "win": "answer_1@criterion_y", "lose": "answer_0@criterion_y"},
    }
    config.optimizer.learning_rate = 3e-6
    config.train.reference = "none"
    return config
