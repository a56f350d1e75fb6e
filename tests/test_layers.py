"""The layer rule: a module imports only from lower layers or from its own folder."""

import ast
import pathlib
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "rubric_jax"

LAYERS = {
    "types": 0,
    "paths": 0,
    "config": 0,
    "rubrics": 1,
    "likelihoods": 1,
    "objectives": 1,
    "models": 1,
    "adapters": 1,
    "data": 2,
    "contrasts": 1,
    "sampling": 2,
    "judges": 2.5,  # the oracle reads the ground truth of data
    "recipes": 2,
    "sharding": 2,
    "checkpoint": 2,
    "metrics": 2,
    "train": 3,
    "evals": 3,
    "report": 3,
    "stages": 4,
    "quickstart": 5,
    "__main__": 6,
}
NEVER = {"torch", "torchvision", "trl", "peft"}
# Loss terms are mathematics. What turns a config into terms also reads the config.
MATHEMATICS = {"jax", "numpy", *sys.stdlib_module_names}
READS_CONFIG = {"objectives/__init__.py", "objectives/binding.py"}


def imports(tree, folder):
    """(line, dotted name) of every import of a module in `folder`, made absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else ()
            source = ".".join([*base, *([node.module] if node.module else [])])
            if source == "rubric_jax":  # from rubric_jax import types
                yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, source


def broken(file, package):
    """'file:line: what is wrong' for every import of a file that the rules forbid."""
    relative = file.relative_to(package)
    unit = relative.parts[0].removesuffix(".py")
    folder = ("rubric_jax", *relative.parent.parts)
    where = f"{package.name}/{relative}"
    if unit == "__init__":
        unit = "types"  # the package's own front page: the lowest layer
    if unit not in LAYERS:
        return [f"{where}:1: {unit} has no layer; add it to the table of this test and the design"]
    found = []
    for line, name in imports(ast.parse(file.read_text()), folder):
        top, *rest = name.split(".")
        if top == "rubric_jax":
            target = rest[0] if rest else unit
            if LAYERS.get(target, 99) >= LAYERS[unit] and target != unit:
                layers = f"layer {LAYERS.get(target, '?')} from layer {LAYERS[unit]}"
                found.append(f"{where}:{line}: imports {name}, {layers}")
        elif top in NEVER:
            found.append(f"{where}:{line}: imports {top}, which the package never does")
        elif top == "flax" and unit != "models":
            found.append(f"{where}:{line}: imports flax, which lives in models/ only")
        if unit == "objectives" and not mathematics(top, rest, str(relative)):
            found.append(f"{where}:{line}: imports {name}; loss terms need jax and types alone")
    return found


def mathematics(top, rest, file):
    if top != "rubric_jax":
        return top in MATHEMATICS
    allowed = {"types", "objectives"} | ({"config"} if file in READS_CONFIG else set())
    return bool(rest) and rest[0] in allowed


def test_every_module_imports_only_from_lower_layers_or_its_own_folder():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 5
    wrong = [line for file in files for line in broken(file, PACKAGE)]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        (
            "models/x.py",
            "import jax\nfrom rubric_jax import data\n",
            "x.py:2: imports rubric_jax.data",
        ),
        ("data/x.py", "from rubric_jax.train import step\n", "x.py:1: imports rubric_jax.train"),
        ("data/x.py", "import rubric_jax.evals as evals\n", "layer 3 from layer 2"),
        ("models/x.py", "from .. import likelihoods\n", "layer 1 from layer 1"),
        ("models/x.py", "from ..likelihoods import auto\n", "layer 1 from layer 1"),
        ("sharding.py", "from rubric_jax import metrics\n", "layer 2 from layer 2"),
        ("types.py", "def f():\n    from rubric_jax import rubrics\n", "types.py:2: imports"),
        ("train/x.py", "import flax.linen as nn\n", "x.py:1: imports flax"),
        ("models/x.py", "import torch\n", "x.py:1: imports torch"),
        ("data/x.py", "from trl import DPOTrainer\n", "imports trl"),
        ("objectives/x.py", "import optax\n", "loss terms need jax"),
        ("objectives/x.py", "from rubric_jax import config\n", "loss terms need jax"),
        ("helpers.py", "", "helpers has no layer"),
    ],
)
def test_a_planted_violation_is_caught_and_its_line_named(tmp_path, path, source, message):
    file = tmp_path / path
    file.parent.mkdir(exist_ok=True)
    file.write_text(source)
    lines = broken(file, tmp_path)
    assert len(lines) == 1
    assert message in lines[0]
    assert pathlib.Path(path).name in lines[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/x.py", "import flax.linen as nn\nfrom rubric_jax import config, types\n"),
        ("models/x.py", "from rubric_jax.models import layers\nfrom . import vit\n"),
        ("objectives/x.py", "import jax.numpy as jnp\nfrom rubric_jax import types\n"),
        (
            "objectives/__init__.py",
            "from rubric_jax import config, objectives\n",
        ),
        ("stages.py", "from rubric_jax import data, train\n"),
    ],
)
def test_what_the_rules_allow_passes(tmp_path, path, source):
    file = tmp_path / path
    file.parent.mkdir(exist_ok=True)
    file.write_text(source)
    assert broken(file, tmp_path) == []
