"""Rubrics: what is asked of a response, and what its scores add up to.

records       Criterion, Rubric, Instance; validation
scales        what a judge may say, and its worth in [0, 1]
templates     the same criteria for every instance, from YAML or JSON
pool          rubrics on disk, by instance
arrays        scores of many instances as arrays [B, K, C]
aggregation   scores -> rewards [B, K, A] and [B, K]
scalarisers   rewards [..., A] -> one number
"""

from rubric_jax.rubrics.aggregation import AGGREGATIONS, Rewards
from rubric_jax.rubrics.arrays import Scores, stack
from rubric_jax.rubrics.records import Criterion, Instance, Rubric, axes_of, instance_key
from rubric_jax.rubrics.scalarisers import SCALARISERS
from rubric_jax.rubrics.scales import SCALES
from rubric_jax.rubrics.templates import TEMPLATES

__all__ = [
    "AGGREGATIONS",
    "SCALARISERS",
    "SCALES",
    "TEMPLATES",
    "Criterion",
    "Instance",
    "Rewards",
    "Rubric",
    "Scores",
    "axes_of",
    "instance_key",
    "stack",
]
