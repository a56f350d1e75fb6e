"""The nouns of the project, as frozen records and pytrees.

Axis letters, used in every shape comment:

  B  instances (one instruction with its media)     N  branches (one response under one context)
  K  sampled responses of an instance               M  contexts (an instruction with its media)
  C  criteria of a rubric, padded                   T  response tokens
  A  reward axes, fixed for a run                   P  prompt tokens, media included
  D, V  model width, vocabulary                     G  image groups (see `Batch.media`)

A preference pair is the case N = 2 of "N responses, each read under one of M contexts":

  branches                                       contexts              context_of
  ("chosen", "rejected")                         ("clean",)            (0, 0)
  ("chosen", "rejected", "chosen@corrupted")     ("clean", "corrupted")  (0, 0, 1)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
Params = Mapping[str, Any]  # nested dicts of arrays, addressed by '/'-paths (see paths.py)
ROWS = ("data", "fsdp")  # the axes of the mesh that rows of a batch are cut along

# How a config's value for a knob of a loss term reaches the term (see objectives/binding.py).
Branch = Annotated[int, "branch"]  # given by name, read as its index in the layout
Branches = Annotated[tuple[int, ...], "branches"]  # a list of names or a pattern, as indices
# Given by axis name or in order, read as float32 [A]; "prompt" reads Labels.preference [B, A].
PerAxis = Annotated[Array, "axes"]
# The name of a head of config.model.heads, and what it must give (see `HeadShape`).
BranchHead = Annotated[str, "branch"]
TokenHead = Annotated[str, "token"]
Table = Annotated[str, "table"]

CLEAN = "clean"
OUTSIDE = -1.0  # in place of a weight: the token stands in no span


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which branches a run compares, and under which context each is read. Static under jit.

    Build it with `Layout.of(("chosen", "rejected@corrupted"))`: a name without '@' is read under
    `clean`; contexts are numbered in order of first use. `PROMPTS` is the layout without branches.
    """

    contexts: tuple[str, ...]  # M names
    branches: tuple[str, ...]  # N names, `response` or `response@context`
    context_of: tuple[int, ...]  # N indices into contexts

    @classmethod
    def of(cls, branches: tuple[str, ...]) -> Layout:
        if not branches:
            raise ValueError("A layout needs at least one branch, such as ('chosen', 'rejected').")
        if len(set(branches)) != len(branches):
            raise ValueError(f"Branch names must differ: {branches}.")
        names = [split_branch(branch)[1] for branch in branches]
        contexts = tuple(dict.fromkeys(names))
        return cls(contexts, tuple(branches), tuple(contexts.index(name) for name in names))

    @property
    def responses(self) -> tuple[str, ...]:
        """The response that each branch reads: 'chosen' for 'chosen@corrupted'."""
        return tuple(split_branch(branch)[0] for branch in self.branches)

    def index(self, branch: str) -> int:
        """Position of a branch by name; a name written with '@clean' is the plain one."""
        response, context = split_branch(branch)
        for n, name in enumerate(self.branches):
            if split_branch(name) == (response, context):
                return n
        raise ValueError(f"No branch {branch!r} in this run; it has {', '.join(self.branches)}.")

    def context_name(self, branch: int) -> str:
        return self.contexts[self.context_of[branch]]

    def branches_of(self, context: int) -> tuple[int, ...]:
        return tuple(n for n, m in enumerate(self.context_of) if m == context)


# Prompts alone, as sampling reads them: one context and no branch.
PROMPTS = Layout((CLEAN,), (), ())


def split_branch(branch: str) -> tuple[str, str]:
    """'chosen@corrupted' -> ('chosen', 'corrupted'); 'chosen' -> ('chosen', 'clean')."""
    response, _, context = branch.partition("@")
    return response, context or CLEAN


class Picture(NamedTuple):
    """A picture as a model reads it."""

    # What the processor makes of it, float32; its form is the family's affair: [H, W, 3], say, or
    # tiles [n, H, W, 3].
    pixels: np.ndarray
    size: tuple[int, int]  # width and height of the file
    entries: int = 1  # that it takes of a group's table, see Batch.media
    cells: int = 1  # that each of them holds; 1 where all entries have the same shape
    interval: float = 0.0  # of a video: seconds from one entry to the next


class Labels(NamedTuple):
    """What is known about the branches of each instance."""

    rewards: Array  # float32 [B, N, A], in [0, 1]; 0 where nothing is known
    weight: Array  # float32 [B], >= 0; multiplies the loss of the instance
    margin: Array  # float32 [B]; subtracted from the logit of terms that use it
    axis: Array  # int32 [B]; the axis that ordered the pair
    preference: Array | None = None  # float32 [B, A], the axis weights that the row's prompt states


class Batch(NamedTuple):
    """One step's data. A row of zeros everywhere (weight and masks too) is padding.

    prompts are right-padded; `prompt_lengths` says how much of each is real. Image placeholders are
    already expanded: a prompt position either holds a text token or one image feature.

    media is the family's own pytree. For families with images it is
      pixels  float32 [G, I, ...]  the distinct images of each of G groups of B/G consecutive rows
                                   (I counts entries: a family may cut an image into several)
      index   int32 [B, M, P]      per prompt position the feature of its group's table, -1 for text
    so that the vision tower sees each distinct image of a group once, and a gather stays on the
    device that holds the group (G = data shards of the mesh x gradient accumulation). Where
    positions are not 0, 1, 2, ... there are also
      positions  int32 [B, M, P, 3]  time, row and column of every prompt token
      behind     int32 [B, M]        tokens of the prompt less the position that follows it
    """

    prompts: Array  # int32 [B, M, P]
    prompt_lengths: Array  # int32 [B, M]
    media: Mapping[str, Array]
    responses: Array  # int32 [B, N, T]
    mask: Array  # float32 [B, N, T], 1 = token, 0 = padding; an absent branch is all 0
    labels: Labels
    ref_logps: Array | None = None  # float32 [B, N, T] in nats, or None: computed in the step
    # {name: float32 [B, N, T]}, the weights that spans of the data give their tokens, OUTSIDE
    # where no span stands; None where no term reads them.
    spans: Mapping[str, Array] | None = None
    # float32 [B, N, T] in nats, under the policy that has just sampled; None = stored responses
    behaviour: Array | None = None


class TokenKL(NamedTuple):
    """Divergence of the next-token distributions at every response token, over all of V."""

    forward: Array  # float32 [B, N, T] in nats, KL(reference || policy)
    reverse: Array  # float32 [B, N, T] in nats, KL(policy || reference)


class Steps(NamedTuple):
    """Steps of the responses: lines, say."""

    index: Array  # int32 [B, N, T] in [0, S), the step of each token
    # float32 [B, N, N, S] in [-1, 1], no gradient: cosine of the same step's mean states in two
    # branches; 0 where one of them has no such step
    similarity: Array


class HeadShape(NamedTuple):
    """What a head gives, known before anything runs.

    branch  float32 [B, N, H]     one vector per branch: of its response, or of its prompt
    token   float32 [B, N, T, H]  one per response token
    table   float32 [R, H]        parameters of their own, whatever the batch
    """

    of: str  # branch, token or table
    outputs: int  # H
    rows: int = 0  # R of a table
    reference: bool = False  # read from the reference's hidden states, without gradient into them


class Logps(NamedTuple):
    """Token log-probabilities of every branch; what objectives read."""

    policy: Array  # float32 [B, N, T] in nats
    ref: Array  # float32 [B, N, T] in nats, no gradient; zeros if the objective needs none
    mask: Array  # float32 [B, N, T]
    kl: TokenKL | None = None  # only where the objective asks for it
    spans: Mapping[str, Array] | None = None  # as in Batch
    # float32 [B, N, T] beside the mask, set by a view (objectives/modifiers.py); None = 1. A branch
    # whose tokens all weigh 0 is there nevertheless: only the mask says what is absent.
    weights: Array | None = None
    behaviour: Array | None = None  # float32 [B, N, T] in nats, of the policy that sampled
    # What follows is there only where the objective asks for it.
    heads: Mapping[str, Array] | None = None  # {head: what its HeadShape says}
    steps: Steps | None = None
    # float32 [B, N, T] in [0, log 2] nats, no gradient: Jensen-Shannon divergence of the
    # distribution of each token from that of the same response under the clean context
    js: Array | None = None

    @property
    def counted(self) -> Array:
        """How much each token counts: the mask times `weights`. float32 [B, N, T]."""
        return self.mask if self.weights is None else self.mask * self.weights

    def ratio(self, branch: int) -> Array:
        """log pi(y|x) - log pi_ref(y|x) of one branch, summed over its tokens. [B], nats."""
        return jnp.sum((self.policy - self.ref)[:, branch] * self.counted[:, branch], axis=-1)

    def total(self, branch: int) -> Array:
        """log pi(y|x) of one branch, summed over its tokens. [B], nats."""
        return jnp.sum(self.policy[:, branch] * self.counted[:, branch], axis=-1)

    def length(self, branch: int) -> Array:
        """Token weight of one branch. [B], tokens."""
        return jnp.sum(self.counted[:, branch], axis=-1)

    def present(self, *branches: int) -> Array:
        """1.0 for instances that have all of these branches, else 0.0. [B]."""
        has = jnp.any(self.mask[:, np.asarray(branches)] != 0, axis=-1)
        return jnp.all(has, axis=-1).astype(jnp.float32)
