"""DPO on visual preference pairs, for LLaVA-NeXT (LLaVA 1.6, 7B to 110B).

  python -m rubric_jax train --config=configs/llava_next.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

A picture is read whole and in up to four tiles of 336 x 336 pixels, which take up to 2928 tokens:
config.data.max_prompt allows for one. Everything else is as in configs/llava.py.
"""

from configs import llava


def get_config():
    config = llava.get_config()
    config.model.family = "llava_next"
    config.data.max_prompt = 4096
    return config
