"""The embedded default: pictures of coloured shapes, instructions, ground truth and a toy model.

write(directory, demos=.., pairs=.., heldout=.., seed=0)   data in TRL's layout, with its pictures
write_model(directory)                                     a toy LLaVA in Hugging Face format
score(instance, text)                                      any response against the ground truth
"""

from rubric_jax.data.scenes.files import demonstrations, pairs, write
from rubric_jax.data.scenes.instances import Instance, from_facts, instance
from rubric_jax.data.scenes.language import AXES, Check, check, corrupt, embellish, reference, score
from rubric_jax.data.scenes.toy import write_model, write_processor
from rubric_jax.data.scenes.world import Scene, Thing, draw

__all__ = [
    "AXES",
    "Check",
    "Instance",
    "Scene",
    "Thing",
    "check",
    "corrupt",
    "demonstrations",
    "draw",
    "embellish",
    "from_facts",
    "instance",
    "pairs",
    "reference",
    "score",
    "write",
    "write_model",
    "write_processor",
]
