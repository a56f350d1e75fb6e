"""DPO on visual preference pairs, for InternVL 3 in the layout of transformers (1B to 78B).

  python -m rubric_jax train --config=configs/internvl.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

DIR is a checkpoint with `-hf` in its name. A picture is read in up to twelve tiles of 448 x 448
pixels and whole, 256 tokens each: config.data.max_prompt allows for one. Everything else is as in
configs/llava.py.
"""

from configs import llava


def get_config():
    config = llava.get_config()
    config.model.family = "internvl"
    config.data.max_prompt = 4096
    return config
