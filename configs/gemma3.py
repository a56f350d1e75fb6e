"""DPO on visual preference pairs, for Gemma 3 with pictures (4B, 12B, 27B).

  python -m rubric_jax train --config=configs/gemma3.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Pictures are read whole, at 896 x 896 pixels and 256 tokens each: pan-and-scan is off. Everything
else is as in configs/llava.py.
"""

from configs import llava


def get_config():
    config = llava.get_config()
    config.model.family = "gemma3"
    return config
