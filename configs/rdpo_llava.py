"""rDPO: rubrics, on-policy samples, criterion-level verdicts, pairs, training, evaluation, report.

  python -m rubric_jax run --config=configs/rdpo_llava.py --workdir=RUN \
      --config.model.checkpoint=DIR --config.pool.path=instructions.jsonl \
      --config.pool.eval_path=heldout.jsonl \
      --config.judging.judge.model=NAME --config.judging.judge.base_url=http://HOST:8000/v1

"Visual Preference Optimization with Rubric Rewards", arXiv:2604.13029. docs/pipeline.md says what
the paper leaves open and which defaults stand here. The rubrics are a template's; to have them
written by a model: config.pool.writer = {"writer": "openai", "model": .., "base_url": ..}.
"""

from configs import llava


def get_config():
    config = llava.get_config()
    config.data.axes = ()  # those that the rubrics name; a writer model and MODPO need them named
    config.pool.writer = {"writer": "template", "template": "general"}
    config.judging.judge = {
        "judge": "openai",
        "model": "",
        "base_url": "",
        "server": {"concurrency": 16},
    }
    config.pair.recipe = {"recipe": "rubric", "margin": 0.15, "pairs": 2}
    config.rounds.count = 2
    return config
