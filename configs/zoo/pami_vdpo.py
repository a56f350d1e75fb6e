"""PaMi-VDPO: an answer under its clip against the same under the most telling changed clip.

  python -m rubric_jax train --config=configs/zoo/pami_vdpo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Conditional DPO over a video, with a bank of changed clips. In the step each row takes the clip
under which the policy's distributions along the answer are farthest (Jensen-Shannon, without
gradient) from those under the true clip. The paper first leaves out clips that are not visually
close to the true one; here the whole bank stands for choice. Columns: chosen, images (frames),
weight (to weigh noisy samples down).

Ours: beta 0.1, the bank, the mean over the answer's tokens.
"""

from configs import llava

METHOD = {
    "row": 12,
    "name": "PaMi-VDPO",
    "paper": "arXiv:2504.05810",
    "status": "partial",
    "missing": (
        "of the selection in the step, the filter that keeps clips visually close; the weights of "
        "noisy samples"
    ),
}


def get_config():
    config = llava.get_config()
    config.data.contexts = {
        "shuffled": {"corruption": "frame_shuffle"},
        "reversed": {"corruption": "frame_reverse"},
        "cropped": {"corruption": "crop"},
    }
    bank = [f"chosen@{context}" for context in config.data.contexts]
    config.data.branches = ("chosen", *bank)
    config.objective = {"dpo_farthest": {"win": "chosen", "over": bank, "beta": 0.1}}
    return config
