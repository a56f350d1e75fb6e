"""DPO of a LLaVA checkpoint through a low-rank adapter: its base is frozen, and is the reference.

  python -m rubric_jax train --config=configs/llava_lora.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN
  python -m rubric_jax export --workdir=RUN --out=HF_DIR --adapter=PEFT_DIR

An adapter by peft to go on from, to score or to sample with, follows a colon; its own rank, alpha
and targets hold: --config=configs/llava_lora.py:PEFT_DIR

A 7B base in bfloat16 takes 14 GB; rank 16 on all linear layers of its decoder adds 40 million
parameters in float32, 0.6 GB with gradients and AdamW's moments. Expect a loss that starts at 0.693
(policy and reference agree). The rate is larger than for whole parameters: 5e-5 is common for DPO
with LoRA where full training takes 1e-6.
"""

from configs import llava


def get_config(start: str = ""):
    config = llava.get_config()
    config.model.adapter = {
        "rank": 16,
        "alpha": 32.0,
        "rank_stabilised": False,
        "dora": False,
        "targets": ((r"decoder/.*", True), (r".*", False)),
    }
    if start:
        config.model.adapter = {"start": start}
    config.model.dtype = "bfloat16"
    config.model.param_dtype = "bfloat16"  # of the frozen base; the adapter is float32
    config.optimizer.learning_rate = 5e-5
    config.optimizer.trainable = ((r".*", True),)
    return config
