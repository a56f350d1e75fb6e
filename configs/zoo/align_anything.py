"""Learning from language feedback: the answer refined by a critique against the first one.

  python -m rubric_jax train --config=configs/zoo/align_anything.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Plain DPO, beta 0.1. Columns: chosen (refined; the critique is not in the prompt), rejected,
images.
"""

from configs import llava

METHOD = {
    "row": 45,
    "name": "Align Anything (LLF)",
    "paper": "arXiv:2412.15838",
    "status": "your data",
    "missing": "the critic and the answers refined by its critiques; the diffusion models",
}


def get_config():
    config = llava.get_config()
    config.objective = {"dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1}}
    return config
