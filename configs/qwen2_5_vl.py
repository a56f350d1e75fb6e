"""DPO on visual preference pairs, for Qwen2.5-VL (3B, 7B, 32B, 72B).

  python -m rubric_jax train --config=configs/qwen2_5_vl.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Pictures keep their shape: one takes a token per 28 x 28 pixels, and the checkpoints' processors
allow 16384 of them. `data.pixels` bounds a picture between 4 and 1024 tokens. Everything else is as
in configs/llava.py.
"""

from configs import llava


def get_config():
    config = llava.get_config()
    config.model.family = "qwen2_5_vl"
    config.data.pixels = (4 * 28 * 28, 1024 * 28 * 28)
    return config
