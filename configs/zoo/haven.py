"""TDPO of HAVEN: DPO on length-normalised log-ratios, corrected tokens counting more.

  python -m rubric_jax train --config=configs/zoo/haven.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Its equation: both sides' weighted log-probabilities over the sum of their weights, gamma on what
was corrected and 1 elsewhere: the words in which the two differ. First SFT (as configs/zoo/dpa.py),
then this. Columns: chosen (corrected by hand), rejected, images (frames).

Ours: gamma 2 and beta 2 (normalised log-ratios are small); the paper's are not known.
"""

from configs import llava

METHOD = {
    "row": 19,
    "name": "HAVEN (TDPO)",
    "paper": "github.com/Hongcheng-Gao/HAVEN",
    "status": "your data",
    "missing": "correcting the model's reasoning by hand",
}


def get_config():
    config = llava.get_config()
    config.data.differences = ("chosen", "rejected")
    config.objective = {
        "sigmoid_norm": {
            "win": "chosen",
            "lose": "rejected",
            "beta": 2.0,
            "with": {"spans": {"inside": 2.0}},  # gamma
        }
    }
    return config
