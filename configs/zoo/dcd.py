"""DCD: one projector learns the chosen answers, another the rejected ones; both decode.

  python -m rubric_jax train --config=configs/zoo/dcd.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Stage A, as it stands: NLL of the chosen answers, only the projector is trained. Stage B, from the
same checkpoint, into another work directory: add --config.data.branches="('rejected',)"
--config.objective.nll.on=rejected. Columns: chosen, rejected, images.

Then export both, and answer by (1 + alpha) positive - alpha negative logits: `sample` or `eval`
with --config.model.checkpoint=A --config.sample.contrast.checkpoint=B (eval:
--config.evaluation.contrast.checkpoint=B).

Ours: the mean over tokens; alpha 0.5 and no plausibility cut, which the source leaves open.
"""

from configs import llava

METHOD = {
    "row": 17,
    "name": "DCD",
    "paper": "arXiv:2504.08809",
    "status": "works",
    "missing": "",
}


def get_config():
    config = llava.get_config()
    config.data.branches = ("chosen",)
    config.objective = {"nll": {"on": "chosen"}}
    config.optimizer.trainable = ((r"projector/.*", True), (r".*", False))
    config.train.reference = "none"
    contrast = {"contrast": "vcd", "alpha": 0.5, "plausible": 0.0, "checkpoint": ""}
    config.sample.contrast = contrast
    config.evaluation.contrast = contrast
    return config
