"""DPO on visual preference pairs, for Idefics3 and SmolVLM (256M to 8B).

  python -m rubric_jax train --config=configs/idefics3.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

A picture is read in up to sixteen tiles and whole, 64, 81 or 169 tokens each:
config.data.max_prompt allows for one. Everything else is as in configs/llava.py.
"""

from configs import llava


def get_config():
    config = llava.get_config()
    config.model.family = "idefics3"
    config.data.max_prompt = 4096
    return config
