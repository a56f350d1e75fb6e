"""VP-Score: which of two pictures suits a text better, by a head on the model that reads both.

  python -m rubric_jax train --config=configs/zoo/visionprefer.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Bradley-Terry between pictures: -log sigma(s(text | better picture) - s(text | worse picture)). A
picture is a context, the text that both were made from the response. Columns: prompt (such as
"What is this a picture of?"), chosen (the text), images (the better one), worse_images.

Ours: the head at the last token; the learning rate. The paper has pairs of four pictures per text,
rated 1 to 5 on four aspects, without ties.
"""

from configs import llava

METHOD = {
    "row": 36,
    "name": "VisionPrefer (VP-Score)",
    "paper": "",
    "status": "your data",
    "missing": "the pictures and their ratings; tuning the generator",
}


def get_config():
    config = llava.get_config()
    config.data.branches = ("chosen", "chosen@worse")
    config.model.heads = {"reward": {"head": "last"}}
    config.objective = {"bt": {"win": "chosen", "lose": "chosen@worse", "head": "reward"}}
    config.optimizer.learning_rate = 3e-6
    config.train.reference = "none"
    return config
