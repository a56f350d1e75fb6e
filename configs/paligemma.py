"""DPO on visual preference pairs, for PaliGemma 1 or 2.

  python -m rubric_jax train --config=configs/paligemma.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Prompts are strings, for these checkpoints have no chat template: "<image> What is this?". Pictures
go to the front, <bos> and the line end that the model expects are put in; a response should end in
"<eos>". Everything else is as in configs/llava.py.
"""

from configs import llava


def get_config():
    config = llava.get_config()
    config.model.family = "paligemma"
    return config
