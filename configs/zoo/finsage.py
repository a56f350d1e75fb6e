"""FinSage's re-ranker: "Yes" to the relevant chunk against "Yes" to one that was only retrieved.

  python -m rubric_jax train --config=configs/zoo/finsage.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

One short answer under two prompts: -log sigma(beta (log-ratio of "Yes" given the query and the
relevant chunk - the same given an irrelevant one)). The score of a chunk is the log-probability of
"Yes" (`python -m rubric_jax score`). Columns: prompt (query and relevant chunk), irrelevant_prompt,
answer ("Yes"), images (pages, or []).

Ours: beta 0.1; that the pairs are of this form is read from a summary.
"""

from configs import llava

METHOD = {
    "row": 30,
    "name": "FinSage",
    "paper": "",
    "status": "your data",
    "missing": "the retrieval that finds both chunks",
}


def get_config():
    config = llava.get_config()
    config.data.branches = ("answer", "answer@irrelevant")
    config.objective = {"dpo": {"win": "answer", "lose": "answer@irrelevant", "beta": 0.1}}
    return config
