"""The commands, as functions: files in, files out.

training    audit, train, score, export, combine: preference data and checkpoints
files       JSON Lines with a manifest beside each, appended, resumed, and refused when foreign
rubrics     instructions -> the rubric pool
sample      instructions, a policy -> K responses each
contrasting what the policy is set against while it answers
judge       responses, rubrics -> verdicts
pair        verdicts -> preference data
schedule    training in several stages
online      training that samples and judges in every step; batching: what its batches are,
            measuring: what it says of its samples
questions   preference data -> instructions that ask which answer is better
evaluate    a policy -> numbers on held-out instructions
run         all of them, for R rounds
"""

from rubric_jax.stages.questions import write_questions
from rubric_jax.stages.run import Interrupted, Run
from rubric_jax.stages.schedule import fit
from rubric_jax.stages.training import audit, combine, export, score, train

__all__ = [
    "Interrupted",
    "Run",
    "audit",
    "combine",
    "export",
    "fit",
    "score",
    "train",
    "write_questions",
]
