"""One optimisation step: branches -> log-probabilities -> objective -> optax, jitted as one.

A reference that stays is never in the state: its log-probabilities come with the batch, or from a
separate frozen tree that is an argument of the step. With an adapter it is the policy's own base,
which does not train, and that argument holds no more than the adapter that the run started from.
A reference that moves is `State.ref`: its parameters, or with an adapter those leaves of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rubric_jax import paths, types
from rubric_jax.likelihoods import autoregressive
from rubric_jax.likelihoods import steps as steps_lib

Array = types.Array
Params = types.Params


class State(NamedTuple):
    """Everything that training changes; what a checkpoint holds."""

    step: Array  # int32 scalar, optimizer steps taken
    params: Params
    opt_state: Any
    loss_state: Any  # of the objective: running baselines
    ref: Params | None = None  # a reference that moves; see Refresh


class Refresh(NamedTuple):
    """How the reference of a state moves.

    After every `every` steps it becomes mixup * policy + (1 - mixup) * reference: the soft update
    of TR-DPO, arXiv:2404.09656, and with a mixup of 1 its hard one.
    """

    every: int  # optimizer steps, >= 1
    mixup: float  # in (0, 1]


class Task(NamedTuple):
    """The parts that a step is made of, all static."""

    vlm: Any  # models.vlm.VLM; any value with `hidden` and `unembed`
    layout: types.Layout
    objective: Any  # objectives.Objective
    logps_chunk: int
    # (batch, steps taken or None for an evaluation) -> batch with pictures drawn in the step
    draw: Callable[[types.Batch, Array | None], types.Batch] = lambda batch, done: batch
    step_ends: Any = None  # bool [V], the tokens that end a step, if the objective reads steps
    # (policy's parameters, ref_params) -> the reference's; None: ref_params are the reference's.
    reference: Callable[[Params, Any], Params] | None = None


def init(params: Params, tx: optax.GradientTransformation, trainable, loss_state) -> State:
    """The state before the first step. The optimizer sees only what trains."""
    kept, _ = paths.split(params, trainable)
    return State(jnp.zeros((), jnp.int32), params, tx.init(kept), loss_state)


def branch_logps(task: Task, params: Params, batch: types.Batch) -> Array:
    """Token log-probabilities of every branch: float32 [B, N, T], nats, 0 where the mask is 0."""
    batch = task.draw(batch, None)
    return _logps(task, _states(task, params, batch), batch)


def branch_scores(task: Task, params: Params, batch: types.Batch) -> dict[str, Array]:
    """`logps` as branch_logps gives them, and `heads/<name>` [B, N, H] of heads per branch."""
    batch = task.draw(batch, None)
    names = [n for n, head in task.vlm.heads if head.shape.of == "branch"]
    states = _states(task, params, batch, bool(names))
    found = _heads(task, names, params, states, None, batch)
    present = jnp.any(batch.mask != 0, axis=-1)[..., None]
    return {
        "logps": _logps(task, states, batch),
        **{f"heads/{name}": jnp.where(present, found[name], 0.0) for name in names},
    }


def make(
    task: Task,
    tx: optax.GradientTransformation,
    trainable,
    *,
    accumulate: int = 1,
    shards: int = 1,
    refresh: Refresh | None = None,
) -> Callable:
    """The step: (state, batch, knobs, ref_params) -> (state, metrics). Jit it with donated state.

    Args:
      task: model, layout and objective.
      tx: the optimizer, over the trainable parameters.
      trainable: tree of booleans like the parameters.
      accumulate: microbatches that the batch is cut into; loss state moves on with each.
      shards: data shards of the mesh, so that every microbatch is spread over all of them.
      refresh: how the reference in `State.ref` moves; None = there is none.

    `knobs` are the objective's traced numbers; `ref_params` is None unless the reference is
    computed in the step and stays. Metrics are means over the rows that hold an instance;
    `tokens` and `rows` are counts.
    """

    def step(state: State, batch: types.Batch, knobs, ref_params=None):
        kept, frozen = paths.split(state.params, trainable)
        ref_params = ref_params if refresh is None else state.ref
        batch = task.draw(batch, state.step)
        total = jnp.maximum(jnp.sum(_rows(batch)), 1.0)

        def loss_fn(kept, part, loss_state):
            return _loss(
                task, paths.merge(kept, frozen), part, knobs, loss_state, ref_params, total
            )

        def body(carry, part):
            grads, metrics, loss_state = carry
            (_, (new, loss_state)), more = jax.value_and_grad(loss_fn, has_aux=True)(
                kept, part, loss_state
            )
            return (_add(grads, more), _add(metrics, new), loss_state), None

        if accumulate == 1:
            (_, (metrics, loss_state)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
                kept, batch, state.loss_state
            )
        else:
            parts = microbatches(batch, accumulate, shards)
            first = jax.tree.map(lambda x: x[0], parts)
            shapes = jax.eval_shape(loss_fn, kept, first, state.loss_state)[1][0]
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (kept, shapes))
            (grads, metrics, loss_state), _ = jax.lax.scan(body, (*zeros, state.loss_state), parts)
        updates, opt_state = tx.update(grads, state.opt_state, kept)
        params = paths.merge(optax.apply_updates(kept, updates), frozen)
        metrics["grad_norm"] = optax.global_norm(grads)
        metrics["update_norm"] = optax.global_norm(updates)
        done = state.step + 1
        moved = None if refresh is None else _like(params, state.ref)
        ref = None if refresh is None else _refreshed(refresh, done, moved, state.ref)
        return State(done, params, opt_state, loss_state, ref), metrics

    return step


def make_eval(task: Task) -> Callable:
    """(params, batch, knobs, loss_state, ref_params) -> metrics summed over rows, and the rows.

    Divide by `rows` after adding up batches.
    """

    def evaluate(params, batch: types.Batch, knobs, loss_state, ref_params=None):
        one, batch = jnp.ones(()), task.draw(batch, None)
        _, (metrics, _) = _loss(task, params, batch, knobs, loss_state, ref_params, one)
        return metrics

    return evaluate


def microbatches(batch: types.Batch, parts: int, shards: int) -> types.Batch:
    """[X, ...] -> [parts, X / parts, ...] on every leaf, without moving rows between data shards.

    Shard s holds rows [s X/shards, (s+1) X/shards); part u takes the u-th slice of every shard.
    """

    def cut(x: Array) -> Array:
        x = x.reshape(shards, parts, -1, *x.shape[1:])
        return jnp.moveaxis(x, 1, 0).reshape(parts, -1, *x.shape[3:])

    return jax.tree.map(cut, batch)


def _like(params: Params, ref: Params) -> Params:
    """The policy's leaves that a moving reference has, too: all, or those of an adapter."""
    if not isinstance(ref, Mapping):
        return params
    return {name: _like(params[name], part) for name, part in ref.items()}


def _refreshed(refresh: Refresh, done: Array, params: Params, ref: Params) -> Params:
    """The reference after `done` steps: one program, whether or not it moves now."""

    def mix(new: Array, old: Array) -> Array:
        if refresh.mixup == 1:
            return new
        # float32: in bfloat16 a small share of a small difference would round to nothing.
        old32 = old.astype(jnp.float32)
        return (old32 + refresh.mixup * (new.astype(jnp.float32) - old32)).astype(old.dtype)

    return jax.lax.cond(
        done % refresh.every == 0,
        lambda new, old: jax.tree.map(mix, new, old),
        lambda new, old: old,
        params,
        ref,
    )


def _loss(task: Task, params, batch: types.Batch, knobs, loss_state, ref_params, total):
    """Sum of the row losses over `total`; metrics alike."""
    read = task.objective.heads
    at_tokens = bool(read) or task.objective.steps is not None
    states, kl, ref_states = _states(task, params, batch, at_tokens), None, None
    policy = _logps(task, states, batch)
    if ref_params is not None:
        if task.reference is not None:
            ref_params = task.reference(params, ref_params)
        ref_states = _states(task, ref_params, batch, bool(read))
        ref = jax.lax.stop_gradient(_logps(task, ref_states, batch))
        if task.objective.needs_kl:
            kl = _kl(task, states, ref_states, batch)
    elif task.objective.needs_kl:
        raise ValueError(
            "The objective reads the divergence from the reference over the whole vocabulary, "
            "which stored log-probabilities do not hold; set config.train.reference to 'step'."
        )
    elif batch.ref_logps is not None:
        ref = batch.ref_logps
    else:
        ref = jnp.zeros_like(policy)
    heads = _heads(task, read, params, states, ref_states, batch) if read else None
    logps = types.Logps(
        policy,
        ref,
        batch.mask,
        kl,
        spans=batch.spans,
        behaviour=batch.behaviour,
        heads=heads,
        steps=_steps(task, states, batch) if task.objective.steps else None,
        js=_js(task, states, batch) if task.objective.needs_js else None,
    )
    losses, metrics, loss_state = task.objective(knobs, loss_state, logps, batch.labels)
    rows = _rows(batch)
    loss = jnp.sum(losses * rows) / total
    metrics = {name: jnp.sum(value * rows) / total for name, value in metrics.items()}
    metrics |= {"loss": loss, "rows": jnp.sum(rows), "tokens": _tokens(batch)}
    return loss, (metrics, loss_state)


def _states(
    task: Task, params: Params, batch: types.Batch, last: bool = False
) -> tuple[Array, Array]:
    """(hidden states [B, N, T, D] that predict the response tokens, unembedding [D, V]).

    `last`: the state at the last token too, [B, N, T + 1, D].
    """
    further = (True,) if last else ()
    return task.vlm.hidden(params, batch, task.layout, *further), task.vlm.unembed(params)


def _predicting(states: tuple[Array, Array], batch: types.Batch) -> tuple[Array, Array]:
    return states[0][:, :, : batch.responses.shape[-1]], states[1]


def _logps(task: Task, states: tuple[Array, Array], batch: types.Batch) -> Array:
    states = _predicting(states, batch)
    logps = autoregressive.token_logps(
        *states, batch.responses, chunk=task.logps_chunk, cap=task.vlm.logit_cap
    )
    # Selected, not multiplied: nothing that a padded position computes can reach the loss.
    return jnp.where(batch.mask != 0, logps, 0.0)


def _kl(task: Task, states, ref_states, batch: types.Batch) -> types.TokenKL:
    states, ref_states = _predicting(states, batch), _predicting(ref_states, batch)
    found = autoregressive.token_kl(
        *states, *ref_states, chunk=task.logps_chunk, cap=task.vlm.logit_cap
    )
    return jax.tree.map(lambda values: jnp.where(batch.mask != 0, values, 0.0), found)


def _js(task: Task, states, batch: types.Batch) -> Array:
    """Of the branches that read the response of a clean branch under another context; else 0."""
    layout, (hidden, unembedding) = task.layout, _predicting(states, batch)
    clean = {r: n for n, r in enumerate(layout.responses) if layout.context_name(n) == types.CLEAN}
    pairs = [(n, clean[r]) for n, r in enumerate(layout.responses) if clean.get(r, n) != n]
    found = jnp.zeros(batch.mask.shape, jnp.float32)
    if not pairs:
        return found
    these, others = (np.array(side) for side in zip(*pairs, strict=True))
    arrays = hidden[:, these], hidden[:, others], unembedding
    js = autoregressive.token_js(*arrays, chunk=task.logps_chunk, cap=task.vlm.logit_cap)
    found = found.at[:, these].set(js)
    return jnp.where(batch.mask != 0, found, 0.0)


def _steps(task: Task, states, batch: types.Batch) -> types.Steps:
    _, count = task.objective.steps
    given = batch.responses, batch.mask, task.step_ends
    return steps_lib.find(states[0][:, :, 1:], *given, count)


def _heads(task: Task, names, params: Params, states, ref_states, batch) -> dict[str, Array]:
    """What these heads give; those of the reference read its states by the policy's parameters."""
    found, heads = {}, dict(task.vlm.heads)
    for name in names:
        hidden, own = states[0], params["heads"][name]
        if heads[name].shape.reference:
            hidden = jax.lax.stop_gradient(ref_states[0])
        found[name] = heads[name].read(own, hidden, batch.mask)
    return found


def _rows(batch: types.Batch) -> Array:
    """1.0 for rows that hold an instance, 0.0 for padding. [B]."""
    return jnp.any(batch.mask != 0, axis=(1, 2)).astype(jnp.float32)


def _tokens(batch: types.Batch) -> Array:
    """Real tokens of the batch, each prompt counted once."""
    return jnp.sum(batch.prompt_lengths) + jnp.sum((batch.mask != 0).astype(jnp.float32))


def _add(a, b):
    return jax.tree.map(jnp.add, a, b)
