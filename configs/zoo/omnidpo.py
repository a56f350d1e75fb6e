"""OmniDPO-like: text pairs, and the same answer under intact and degraded video.

  python -m rubric_jax train --config=configs/zoo/omnidpo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

The abstract's two kinds of preference: DPO on the pair, and conditional DPO per medium. Here the
video term only, with frames as pictures. Columns: chosen, rejected, images (frames).

Ours: both weights 1, beta 0.1, half of the frames blackened.
"""

from configs import llava

METHOD = {
    "row": 2,
    "name": "OmniDPO",
    "paper": "",
    "status": "partial",
    "missing": "audio and its term; the paper gives neither weights nor code",
}


def get_config():
    config = llava.get_config()
    config.data.branches = ("chosen", "rejected", "chosen@video")
    config.data.contexts = {"video": {"corruption": "frame_mask", "share": 0.5}}
    config.objective = {
        "dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1},
        "video": {"term": "dpo", "win": "chosen", "lose": "chosen@video", "beta": 0.1},
    }
    return config
