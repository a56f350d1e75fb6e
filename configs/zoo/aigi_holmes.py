"""AIGI-Holmes, last stage: DPO on explanations of why a picture is generated.

  python -m rubric_jax train --config=configs/zoo/aigi_holmes.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

The paper: plain DPO, beta 0.1, lr 5e-7, two epochs. Columns: chosen, rejected, images.

The released run is DPO + 1.0 NLL at lr 5e-5.
"""

from configs import llava

METHOD = {
    "row": 21,
    "name": "AIGI-Holmes",
    "paper": "arXiv:2507.02664",
    "status": "partial",
    "missing": (
        "the two vision experts and decoding with them; answers under adversarial prompts, rewrites"
    ),
}


def get_config():
    config = llava.get_config()
    config.objective = {"dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1}}
    config.optimizer.learning_rate = 5e-7
    config.train.epochs = 2.0
    return config
