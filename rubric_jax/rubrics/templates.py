"""Hand-written templates: the same criteria for every instance.

YAML or JSON, from a criterion's name to what it asks:

  hallucination:
    description: Nothing is claimed to be in the image that is not there.
    scale: binary                 # or "1-5", or halves
    levels: {true: Everything named is there., false: Something is made up.}
    weight: 3                     # 1 when left out
    kind: essential               # essential when left out
    axis: grounding               # the criterion's name when left out

Two are built in, for use by name: `general` (visual faithfulness) and `documents` (charts, tables,
scanned pages).
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from rubric_jax import config as config_lib
from rubric_jax.rubrics import records

_FOLDER = pathlib.Path(__file__).parent / "templates"
TEMPLATES = tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))
_FIELDS = ("description", "scale", "levels", "weight", "kind", "axis", "penalty")


def load(name: str, *, axes: Sequence[str] = ()) -> records.Rubric:
    """The template as a rubric whose key is its name; `apply` gives it to an instance.

    Args:
      name: of a built-in template, or the path of a .yaml, .yml or .json file.
      axes: the run's reward axes; empty = any.

    Raises:
      ValueError: 'file:line: criterion: field: what is wrong, and the mend'.
    """
    path = _FOLDER / f"{name}.yaml" if name in TEMPLATES else pathlib.Path(name)
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise ValueError(
            f"{name!r} is no template; it must be a .yaml or .json file, or "
            f"{config_lib.one_of(name, TEMPLATES)}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read the template {str(path)!r}: {error}.") from None
    value, lines = _read(text, path)
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{path}: not a mapping from criterion to description, scale, ...")
    criteria = []
    for criterion, fields in value.items():
        line = f":{lines[criterion]}" if criterion in lines else ""
        criteria.append(_criterion(str(criterion), fields, f"{path}{line}: {criterion}", axes))
    source = f"template:{path.stem}"
    return records.parse(
        {"key": source, "source": source, "criteria": criteria}, where=str(path), axes=axes
    )


def apply(template: records.Rubric, key: str) -> records.Rubric:
    """The rubric of the instance `key`."""
    return template.model_copy(update={"key": key})


def _criterion(name: str, fields: Any, where: str, axes: Sequence[str]) -> dict[str, Any]:
    if not isinstance(fields, Mapping):
        raise ValueError(f"{where}: {fields!r}; it must be a mapping with a description.")
    for field in fields:
        if field not in _FIELDS:
            raise ValueError(
                f"{where}: {field}: unknown field; it must be {config_lib.one_of(field, _FIELDS)}"
            )
    if "description" not in fields:
        raise ValueError(f"{where}: description: missing; say what the criterion asks.")
    ident = re.sub(r"[^A-Za-z0-9_.-]+", "_", name.strip()).strip("_")
    value = {
        "id": ident,
        "text": fields["description"],
        "kind": fields.get("kind", "essential"),
        "weight": fields.get("weight", 1),
        "axis": fields.get("axis", ident),
        "scale": str(fields.get("scale", "halves")),
        "penalty": fields.get("penalty", False),
    }
    if isinstance(fields.get("levels"), Mapping):
        value["levels"] = {_level(k): v for k, v in fields["levels"].items()}
    elif "levels" in fields:
        raise ValueError(f"{where}: levels: {fields['levels']!r}; it must map levels to texts.")
    # Checked one by one, so that an error has its criterion's line.
    records.parse_criterion(value, where=where, axes=axes)
    return value


def _level(key: Any) -> str:
    """YAML reads 1 as a number and true, yes, on as a truth value."""
    return str(key).lower() if isinstance(key, bool) else str(key)


def _read(text: str, path: pathlib.Path) -> tuple[Any, dict[Any, int]]:
    """The values, and the line of each criterion where the format tells it."""
    if path.suffix == ".json":
        try:
            return json.loads(text, object_pairs_hook=lambda p: _unique(p, str(path))), {}
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}.") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            return None, {}
        _refuse_repeats(root, path)
        lines = {key.value: key.start_mark.line + 1 for key, _ in root.value}
        return yaml.safe_load(text), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{line}: not YAML: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}.") from None


def _unique(items: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    keys = [key for key, _ in items]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{where}: {key}: occurs twice; give every criterion its own name.")
    return dict(items)


def _refuse_repeats(node: yaml.MappingNode, path: pathlib.Path) -> None:
    """YAML parsers keep the last of two equal keys and lose the other without a word."""
    seen = set()
    for key, value in node.value:
        if key.value in seen:
            line = key.start_mark.line + 1
            raise ValueError(
                f"{path}:{line}: {key.value}: occurs twice; give every criterion its own name."
            )
        seen.add(key.value)
        if isinstance(value, yaml.MappingNode):
            _refuse_repeats(value, path)
