"""DPO on visual preference pairs, for dense Qwen3-VL (2B, 4B, 8B, 32B).

  python -m rubric_jax train --config=configs/qwen3_vl.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Pictures keep their shape: one takes a token per 32 x 32 pixels, and the checkpoints' processors
allow 16384 of them. `data.pixels` bounds a picture between 4 and 1024 tokens. Everything else is as
in configs/llava.py.
"""

from configs import llava


def get_config():
    config = llava.get_config()
    config.model.family = "qwen3_vl"
    config.data.pixels = (4 * 32 * 32, 1024 * 32 * 32)
    return config
