"""Preference training of a LLaVA checkpoint (LlavaForConditionalGeneration) on TRL-style data.

  python -m rubric_jax train --config=configs/llava.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

One 80 GB GPU holds a 7B checkpoint only in part: set --config.mesh.fsdp to the number of devices.
For a multi-objective loss name the axes of your rewards and take `modpo` (configs/llava_modpo.py).
"""

from rubric_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.model.family = "llava"
    config.objective = {
        "dpo": {
            "weight": 1.0,
            "win": "chosen",
            "lose": "rejected",
            "beta": 0.1,
            "label_smoothing": 0.0,
        },
    }
    config.optimizer.learning_rate = 1e-6
    # As in LLaVA's own fine-tuning: the vision tower stays as it is.
    config.optimizer.trainable = ((r"vision/.*", False), (r".*", True))
    config.train.batch_size = 8
    return config
