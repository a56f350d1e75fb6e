"""Vision-R1: GRPO on format, precision and recall of boxes.

  python -m rubric_jax run --config=configs/zoo/vision_r1.py --config.model.checkpoint=DIR \
      --config.pool.path=instructions.jsonl --workdir=RUN

GRPO with the sum of three rewards, four fresh responses, standard deviation and k3. Boxes are
matched one to one; what counts as a hit rises at step 1500. Instructions have the right boxes:
"facts": {"boxes": [{"bbox_2d": [x1, y1, x2, y2], "label": "cup"}, ..]}, in the pixels that the
responses use. The published command runs without the schedule: leave out `later`.

Ours: beta_kl 0.04, not in the source.
"""

from configs import llava

METHOD = {
    "row": 38,
    "name": "Vision-R1 (Griffon team)",
    "paper": "arXiv:2503.18013",
    "status": "works",
    "missing": "",
}
PRECISION = {"low": 0.5, "high": 0.75, "later": {"step": 1500, "low": 0.75, "high": 0.9}}
RECALL = {"low": 0.5, "high": 0.5, "later": {"step": 1500, "low": 0.75, "high": 0.75}}


def get_config():
    config = llava.get_config()
    config.pool.writer = {
        "writer": "rules",
        "rules": {
            "format": {"rule": "boxes"},
            "precision": {"rule": "box_precision", **PRECISION},
            "recall": {"rule": "box_recall", **RECALL, "floor": 0.5, "full": 0.75},
        },
    }
    config.judging.judge = {"judge": "rules"}
    config.data.branches = tuple(f"response_{k}" for k in range(4))
    config.data.axes = ("format", "precision", "recall")
    config.sample.count, config.sample.temperature, config.sample.top_k = 4, 1.0, 0
    config.pair.recipe = {"recipe": "group"}
    grpo = {"over": "response_*", "weights": [1.0, 1.0, 1.0], "behaviour": "sampler"}
    config.objective = {"grpo": {**grpo, "beta_kl": 0.04}}
    config.train.reference = "step"
    config.online.updates = 1
    return config
