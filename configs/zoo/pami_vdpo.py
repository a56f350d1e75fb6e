"""PaMi-VDPO-like: the answer under the clip against the same answer under an augmented clip.

  python -m rubric_jax train --config=configs/zoo/pami_vdpo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Conditional DPO over a video. The paper picks, per prompt, one of N augmentations in the step; here
the clip is shuffled, or comes as a column. Columns: chosen, images (frames), weight (to weigh
noisy samples down), corrupted_images if you chose the clips.

Ours: beta 0.1, single frames are shuffled.
"""

from configs import llava

METHOD = {
    "row": 12,
    "name": "PaMi-VDPO",
    "paper": "arXiv:2504.05810",
    "status": "partial",
    "missing": (
        "choosing among several augmented clips in the step, by the policy's own distributions"
    ),
}


def get_config():
    config = llava.get_config()
    config.data.branches = ("chosen", "chosen@corrupted")
    config.data.contexts = {"corrupted": {"corruption": "frame_shuffle"}}
    config.objective = {"dpo": {"win": "chosen", "lose": "chosen@corrupted", "beta": 0.1}}
    return config
