"""SPO, preference degrees: DPO, and a head that tells how many phrases an answer lost.

  python -m rubric_jax train --config=configs/zoo/spo_degree.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

DPO(chosen_0, rejected_0) + lambda x cross-entropy of the degree, for both families. Columns:
chosen_0 (whole), chosen_1 (a key phrase removed), chosen_2 (two removed), rejected_0 and so on,
images.

Ours: lambda 0.1, three degrees, the head on the mean of the response's states.
"""

from configs import llava

METHOD = {
    "row": 44,
    "name": "SPO (preference degree)",
    "paper": "",
    "status": "your data",
    "missing": "answers with phrases removed; lambda and the number of degrees are not known",
}


def get_config():
    config = llava.get_config()
    families = {side: [f"{side}_{k}" for k in range(3)] for side in ("chosen", "rejected")}
    config.data.branches = (*families["chosen"], *families["rejected"])
    config.model.heads = {"degree": {"head": "mean", "outputs": 3}}
    degree = {"term": "degree", "weight": 0.1, "head": "degree"}
    config.objective = {
        "dpo": {"win": "chosen_0", "lose": "rejected_0", "beta": 0.1},
        **{f"degree_{side}": {**degree, "over": names} for side, names in families.items()},
    }
    return config
