"""docs/objectives.md names every term and modifier, and its config lines build."""

import ast
import pathlib
import re

import pytest

from rubric_jax import objectives, types
from rubric_jax.models import heads

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "objectives.md").read_text()
HEADS = ast.literal_eval(re.search(r"config.model.heads = (\{.*?\n\})", PAGE, re.DOTALL)[1])
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]
RESPONSES = tuple(f"response_{k}" for k in range(3))
HARDER = ("chosen@other", "rejected@other", "chosen@favoured", "rejected@favoured")
LAYOUT = types.Layout.of(
    ("chosen", "rejected", "chosen@corrupted", "reference_answer", *HARDER, *RESPONSES)
)


@pytest.mark.parametrize("line", LINES)
def test_every_config_line_builds(line):
    axes = ("correctness", "grounding", "format")
    objectives.build(ast.literal_eval(line), LAYOUT, axes, heads.shapes(HEADS))


def test_every_name_has_a_row_and_a_config_line():
    rows = set(re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE))
    specs = [ast.literal_eval(line) for line in LINES]
    used = {spec.get("term", entry) for line in specs for entry, spec in line.items()}
    around = {name for line in specs for spec in line.values() for name in spec.get("with", {})}
    assert objectives.OBJECTIVES.keys() | objectives.modifiers.MODIFIERS.keys() <= rows
    assert objectives.OBJECTIVES.keys() == used
    assert objectives.modifiers.MODIFIERS.keys() == around
