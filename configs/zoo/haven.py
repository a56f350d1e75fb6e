"""TDPO of HAVEN: DPO on length-normalised log-ratios, corrected tokens counting more.

  python -m rubric_jax train --config=configs/zoo/haven.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Its equation: both sides' weighted log-probabilities over the sum of their weights. With gamma 1,
as here, it is length-normalised DPO. First SFT (as configs/zoo/dpa.py), then this. Columns: chosen
(corrected by hand), rejected, images (frames).

Ours: beta 2; normalised log-ratios are small.
"""

from configs import llava

METHOD = {
    "row": 19,
    "name": "HAVEN (TDPO)",
    "paper": "github.com/Hongcheng-Gao/HAVEN",
    "status": "partial",
    "missing": "weights of corrected tokens (data have no column for them), so gamma is 1",
}


def get_config():
    config = llava.get_config()
    config.objective = {"sigmoid_norm": {"win": "chosen", "lose": "rejected", "beta": 2.0}}
    return config
