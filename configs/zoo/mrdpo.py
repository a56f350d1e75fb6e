"""mrDPO / gDPO of video-SALMONN 2: DPO and the likelihood of a third, true caption.

  python -m rubric_jax train --config=configs/zoo/mrdpo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN
  python -m rubric_jax export --workdir=RUN --out=HF_DIR

Its equation: DPO + 0.1 CE(true caption), beta 0.1, 1000 steps a round. Columns: chosen, rejected,
reference_answer, images (frames). The next round: the same commands
with another --workdir and --config.model.checkpoint=HF_DIR, which is then the reference too.

Ours: CE is averaged over the tokens of the batch; the whole model is trained (the paper: LoRA, rank
128 and alpha 256, merged and begun anew in every round, which config.model.adapter does in `run`).
"""

from configs import llava

METHOD = {
    "row": 5,
    "name": "video-SALMONN 2 (mrDPO, gDPO)",
    "paper": "arXiv:2506.15220",
    "status": "partial",
    "missing": "audio; rows without a pair",
}


def get_config():
    config = llava.get_config()
    config.data.branches = ("chosen", "rejected", "reference_answer")
    config.objective = {
        "dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1},
        "nll": {"weight": 0.1, "on": "reference_answer", "reduce": "batch_tokens"},
    }
    config.train.steps = 1000
    return config
