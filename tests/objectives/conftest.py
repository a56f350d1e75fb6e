"""Fixture P: two pairs with four branches, worked by hand to ten decimals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import types

# Branches: chosen, rejected, chosen@corrupted, reference_answer; the rest of T = 4 is padding.
POLICY = [
    [[-1.0, -0.5, -2.0], [-0.7, -1.5, -1.1, -0.9], [-1.6, -0.9, -2.1], [-0.4, -0.6]],
    [[-0.3, -0.8], [-2.0, -1.0, -0.4], [-0.9, -1.4], [-1.1]],
]
REF = [
    [[-1.2, -0.9, -1.8], [-0.6, -1.2, -1.4, -0.5], [-1.3, -1.0, -2.0], [-0.5, -0.6]],
    [[-0.2, -0.5], [-2.5, -1.2, -0.6], [-0.7, -1.3], [-1.0]],
]
# Token weights of spans; elsewhere, and on the other branches, there is none.
SPANS = [[{0: 2.5}, {1: 2.5, 2: 2.5}], [{1: 2.0}, {2: 2.0}]]
# What heads gave: per branch, per token, or tables of their own.
HEADS = {
    "score": [[[0.7], [-0.4], [0.1], [0.3]], [[-0.2], [0.5], [0.4], [-0.6]]],
    "scores": [
        [[0.5, 0.1, 1.2], [0.0, 0.3, 0.2], [0.4, -0.1, 0.6], [0.2, 0.2, -0.3]],
        [[-0.3, 0.8, 0.1], [0.4, 0.2, -0.5], [0.9, 0.0, 0.3], [0.1, -0.7, 0.6]],
    ],
    "router": [
        [[0.2, 0.9, -0.4], [0.2, 0.9, -0.4], [1.0, 0.1, 0.3], [0.2, 0.9, -0.4]],
        [[-0.8, 0.5, 0.1], [-0.8, 0.5, 0.1], [0.0, 0.6, -0.2], [-0.8, 0.5, 0.1]],
    ],
    "point": [
        [[0.6, 0.8], [-0.3, 0.4], [0.5, -0.2], [0.1, 0.9]],
        [[0.2, -0.7], [0.8, 0.3], [-0.4, 0.6], [0.3, 0.3]],
    ],
    "prototypes": [
        [[1.0, 0.2, -0.3, 0.8]] * 2 + [[0.4, 0.4, 0.1, -0.9]] * 2,
        [[-0.5, 0.6, 0.7, 0.2]] * 2 + [[0.3, -0.8, 0.9, 0.5]] * 2,
    ],
    "users": [[0.4, -0.2], [0.0, 0.7], [-0.6, 0.5]],
}
SHAPES = {
    **{name: types.HeadShape("branch", np.shape(rows)[-1]) for name, rows in HEADS.items()},
    "users": types.HeadShape("table", 2, rows=3),
    "mask": types.HeadShape("token", 1, reference=True),
    "kl_mask": types.HeadShape("token", 1, reference=True),
}
# MODPO, A = 3: the pairs are ordered by axis 0 and axis 2.
AXIS = [0, 2]
REWARDS = [[[1.0, 0.0, 0.5], [0.5, 1.0, 0.5]], [[0.0, 1.0, 1.0], [0.5, 0.0, 0.5]]]


def _pad(rows, fill=0.0):
    out = np.full((2, 4, 4), fill)
    for b, row in enumerate(rows):
        for n, tokens in enumerate(row):
            out[b, n, : len(tokens)] = tokens
    return out


def _steps(mask, dtype):
    """The first two tokens of every response are step 0, the others step 1 of two."""
    index = np.broadcast_to(np.arange(4) // 2, mask.shape).astype(np.int32)
    similarity = np.linspace(-0.5, 0.9, 2 * 4 * 4 * 2).reshape(2, 4, 4, 2)
    return types.Steps(index, ((similarity + similarity.swapaxes(1, 2)) / 2).astype(dtype))


def fixture_p(dtype=np.float64, fill=0.0):
    """(logps, labels) of fixture P; `fill` goes into the padding."""
    mask = _pad([[np.ones(len(tokens)) for tokens in row] for row in POLICY])
    # Of no model, but >= 0: KL(reference || policy) and KL(policy || reference) per token.
    kl = types.TokenKL(
        *(
            _pad([[scale * np.square(t) for t in row] for row in POLICY], fill)
            for scale in (0.1, 0.2)
        )
    )
    spans = np.full(mask.shape, types.OUTSIDE, dtype)
    for b, row in enumerate(SPANS):
        for n, tokens in enumerate(row):
            spans[b, n, list(tokens)] = list(tokens.values())
    heads = {name: np.asarray(values, dtype) for name, values in HEADS.items()}
    for name, scale in (("mask", 0.5), ("kl_mask", 0.25)):  # of no model, but >= 0
        weights = _pad([[scale * np.abs(t) for t in row] for row in REF], abs(fill))
        heads[name] = weights.astype(dtype)[..., None]
    logps = types.Logps(
        _pad(POLICY, fill).astype(dtype),
        _pad(REF, -fill).astype(dtype),
        mask.astype(dtype),
        types.TokenKL(*(values.astype(dtype) for values in kl)),
        {"": spans},
        heads=heads,
        steps=_steps(mask, dtype),
        js=_pad(
            [[0.05 * (n + 1) * np.abs(t) for n, t in enumerate(row)] for row in POLICY], fill
        ).astype(dtype),
    )
    rewards = np.zeros((2, 4, 3), dtype)
    rewards[:, :2] = REWARDS
    labels = types.Labels(
        rewards, np.ones(2, dtype), np.zeros(2, dtype), np.asarray(AXIS, np.int32)
    )
    return logps, labels


@pytest.fixture(params=["float64", "float32"])
def pairs(request):
    """Fixture P in both precisions; 64-bit types are on for the one that needs them."""
    with jax.enable_x64(request.param == "float64"):
        yield fixture_p(request.param)


@pytest.fixture
def pairs64():
    with jax.enable_x64(True):
        yield fixture_p()


@pytest.fixture
def pairs32():
    return fixture_p(np.float32)


@pytest.fixture
def make_pairs():
    return fixture_p


@pytest.fixture
def close():
    """Compares per-pair values in the precision that they came in."""

    def compare(found, expected):
        # The numbers typed in have ten decimals.
        double = {"rtol": 1e-9, "atol": 5e-11}
        tolerance = double if found.dtype == np.float64 else {"rtol": 2e-7, "atol": 2e-6}
        np.testing.assert_allclose(found, np.asarray(expected), **tolerance)

    return compare


@pytest.fixture
def slope():
    """d loss / d log-ratio of one branch, per row: the gradient at the branch's first token."""

    def differentiate(term, logps, labels, branch, **knobs):
        def total(shift):
            policy = jnp.asarray(logps.policy).at[:, branch, 0].add(shift)
            return term(logps._replace(policy=policy), labels, **knobs)[0].sum()

        return jax.grad(total)(jnp.zeros(len(labels.weight), logps.policy.dtype))

    return differentiate


@pytest.fixture
def make_list():
    """(logps, labels) of one instance with a list of branches of one token each, one axis.

    make_list(log_ratios, rewards): the reference gives every response -1 nat.
    """

    def build(log_ratios, rewards, tokens=1):
        ratios = np.asarray(log_ratios, np.float64)
        ref = np.full((1, len(ratios), tokens), -1.0)
        labels = types.Labels(
            np.asarray(rewards, np.float64)[None, :, None],
            np.ones(1),
            np.zeros(1),
            np.zeros(1, np.int32),
        )
        return types.Logps(ref + ratios[None, :, None], ref, np.ones_like(ref)), labels

    return build
