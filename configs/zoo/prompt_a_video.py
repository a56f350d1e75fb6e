"""Prompt-A-Video: a rewriter of prompts, trained by DPO on how good the videos became.

  python -m rubric_jax train --config=configs/zoo/prompt_a_video.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Plain DPO, beta 0.1, three epochs, batch 32. Columns: prompt, images ([]: text only), chosen (of
the first two ranks, above every floor, at most 130 words), rejected (a lower rewrite, gap above
1.4).
"""

from configs import llava

METHOD = {
    "row": 55,
    "name": "Prompt-A-Video",
    "paper": "arXiv:2412.15156",
    "status": "your data",
    "missing": "the video generator, its seven scorers, and the prompts evolved for SFT",
}


def get_config():
    config = llava.get_config()
    config.objective = {"dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1}}
    config.train.batch_size = 32
    config.train.epochs = 3.0
    return config
