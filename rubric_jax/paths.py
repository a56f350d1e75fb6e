"""Parameters by '/'-path, and ordered (regex, value) rules over them.

One list of rules says how parameters are sharded, frozen, decayed or loaded:

  rules = ((r"vision/.*", False), (r".*", True))
  match(rules, params)  ->  a tree like params, with the value of the first rule that matches

A rule matches from the start of the path to its end (`re.fullmatch`). First match wins; no match
raises, so that a new parameter is never placed or trained by accident.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

Rules = Sequence[tuple[str, Any]]


def name(key_path) -> str:
    """'blocks/attn/q/kernel' of a jax key path."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def flatten(tree) -> dict[str, Any]:
    """{'a/b': leaf}, in tree order."""
    return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_named(fn: Callable[[str, Any], Any], tree):
    """`jax.tree.map` with the path as first argument."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: fn(name(path), leaf), tree)


def lookup(rules: Rules, path: str, *, what: str = "rule") -> Any:
    """The value of the first rule whose regex matches the whole path; ValueError if none does."""
    for pattern, value in rules:
        if re.fullmatch(pattern, path):
            return value
    patterns = ", ".join(repr(pattern) for pattern, _ in rules) or "none"
    raise ValueError(f"No {what} matches {path!r}; the patterns are {patterns}. Add one.")


def match(rules: Rules, tree, *, what: str = "rule"):
    """A tree of rule values shaped like `tree`. A value may be a pytree (a PartitionSpec, say)."""
    return map_named(lambda path, _: lookup(rules, path, what=what), tree)


def split(tree, keep) -> tuple[Any, Any]:
    """Splits a tree by a tree of booleans into (kept, rest), with None in place of the others."""
    kept = jax.tree.map(lambda leaf, k: leaf if k else None, tree, keep)
    rest = jax.tree.map(lambda leaf, k: None if k else leaf, tree, keep)
    return kept, rest


def merge(kept, rest):
    """Undoes `split`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, kept, rest, is_leaf=lambda leaf: leaf is None
    )
