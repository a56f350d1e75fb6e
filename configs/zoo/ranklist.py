"""RankList: a scorer of lists; first neighbours, then places two apart, then three.

  python -m rubric_jax train --config=configs/zoo/ranklist.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

Our reading: sum over skips k of sum_i log(1 + exp(s_{i+k} - s_i)), s a head's score, one stage for
each further skip. The form with logsumexp is plackett_luce. Columns: response_0 .. response_3,
response_0_rewards .. {"score": ..}, images.

Ours: four responses, one epoch a stage, labels less than 0.1 apart count as tied.
"""

from configs import llava

METHOD = {
    "row": 68,
    "name": "RankList",
    "paper": "",
    "status": "your data",
    "missing": "the lists and their scores; the formula is our reading of a summary",
}


def get_config():
    config = llava.get_config()
    config.data.branches = tuple(f"response_{k}" for k in range(4))
    config.data.axes = ("score",)
    config.model.heads = {"score": {"head": "last"}}
    lists = {"over": "response_*", "beta": 1.0, "weights": [1.0], "min_gap": 0.1}
    term = {**lists, "with": {"by_head": {"head": "score"}}}
    config.objective = {"ranklist": {**term, "skips": 1}}
    config.schedule = tuple(
        {"name": f"skips_{k}", "objective": {"ranklist": {**term, "skips": k}}} for k in (1, 2, 3)
    )
    config.train.reference = "none"
    return config
