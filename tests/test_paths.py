from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from rubric_jax import paths


class State(NamedTuple):
    params: dict
    moments: tuple


TREE = {"vision": {"kernel": 1, "bias": 2}, "decoder": {"kernel": 3}}


def test_leaves_are_named_by_keys_fields_and_positions():
    state = State({"b": {"kernel": 1}, "a": 2}, ({"a": 3}, None))
    assert paths.flatten(state) == {"params/a": 2, "params/b/kernel": 1, "moments/0/a": 3}


def test_the_first_rule_that_matches_wins():
    rules = ((r"vision/.*", False), (r".*kernel", True), (r".*", None))
    assert paths.lookup(rules, "vision/kernel") is False
    assert paths.lookup(rules, "decoder/kernel") is True


def test_a_rule_matches_the_whole_path():
    with pytest.raises(ValueError, match="'decoder/kernel'"):
        paths.lookup(((r"kernel", 1), (r"decoder", 2)), "decoder/kernel")


def test_a_path_without_a_rule_is_named_with_the_patterns_there_are():
    with pytest.raises(ValueError, match=r"No partition rule matches 'a/b'; the patterns are 'x'"):
        paths.lookup(((r"x", 1),), "a/b", what="partition rule")
    with pytest.raises(ValueError, match="the patterns are none"):
        paths.lookup((), "a/b")


def test_match_gives_a_tree_of_values_that_may_be_trees():
    rules = ((r".*kernel", P("fsdp")), (r".*", {"decay": 0.0}))
    assert paths.match(rules, TREE) == {
        "vision": {"kernel": P("fsdp"), "bias": {"decay": 0.0}},
        "decoder": {"kernel": P("fsdp")},
    }


def test_split_and_merge_undo_each_other():
    keep = paths.match(((r"vision/.*", False), (r".*", True)), TREE)
    kept, rest = paths.split(TREE, keep)
    assert kept == {"vision": {"kernel": None, "bias": None}, "decoder": {"kernel": 3}}
    assert rest == {"vision": {"kernel": 1, "bias": 2}, "decoder": {"kernel": None}}
    assert paths.merge(kept, rest) == TREE


def test_what_is_split_off_gets_no_gradient_and_no_optimizer_state():
    params = jax.tree.map(jnp.float32, TREE)
    keep = paths.match(((r"vision/.*", False), (r".*", True)), params)
    kept, rest = paths.split(params, keep)

    def loss(kept):
        return sum(leaf**2 for leaf in jax.tree.leaves(paths.merge(kept, rest)))

    grads = jax.grad(loss)(kept)
    assert paths.flatten(grads) == {"decoder/kernel": 6.0}
    moments = optax.adam(1.0).init(kept)[0].mu
    assert list(paths.flatten(moments)) == ["decoder/kernel"]


def test_map_named_gives_path_and_leaf():
    named = paths.map_named(lambda path, leaf: f"{path}={leaf}", {"a": [np.int32(1), 2]})
    assert named == {"a": ["a/0=1", "a/1=2"]}
