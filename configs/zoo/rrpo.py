"""RRPO: DPO on the spans that differ, and a divergence per token on the chosen answer.

  python -m rubric_jax train --config=configs/zoo/rrpo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Its equation: -log sigma(beta u) + alpha sum_t KL(reference || policy), u over the spans in which
the answers differ, the divergence over all of chosen. Differing words are found by comparing, or
named by chosen_spans and rejected_spans. Columns: chosen, rejected, images (frames). Beta, alpha
and learning rate are those of LLaVA-Video.

The sign of the divergence is the code's.

Ours: batch 8 (the source has 32); the whole model is trained, not LoRA.
"""

from configs import llava

METHOD = {
    "row": 53,
    "name": "RRPO",
    "paper": "arXiv:2504.12083",
    "status": "your data",
    "missing": "wrong answers from perturbed videos, rewritten so that their spans line up",
}


def get_config():
    config = llava.get_config()
    config.data.differences = ("chosen", "rejected")
    config.objective = {
        "dpo": {
            "win": "chosen",
            "lose": "rejected",
            "beta": 0.1,
            "with": {"spans": {"outside": 0.0}},
        },
        "token_kl": {"weight": 0.01, "on": "chosen"},
    }
    config.optimizer.learning_rate = 5e-6
    config.train.reference = "step"
    return config
