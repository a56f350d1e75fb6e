"""docs/zoo.md: which of 78 methods of preference optimisation a config here expresses.

  python -m experiments.zoo          writes the page from configs/zoo

Every file there describes itself in METHOD; not_yet.yaml has the rows without a config.
"""

from __future__ import annotations

import importlib.util
import pathlib
from types import ModuleType
from typing import Any

import yaml

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "zoo.md"
ROWS = range(1, 79)
FIELDS = {"row", "name", "paper", "status", "missing"}
STATUSES = {
    "works": "trains by the paper's loss and schedule, on plain preference pairs or on data that "
    "the pipeline makes. What is done with finished answers, such as taking the best of N, is "
    "evaluation: where it is not here, the last column says so.",
    "your data": "the same loss and schedule; how the method makes its data (last column) is not "
    "here. The config's docstring names the columns to bring.",
    "partial": "trains, but a part of the method is missing: of its loss, selection in the step, "
    "model, modality or decoding.",
    "not yet": "no config, for the reason in the last column.",
    "survey": "no method.",
}
ANSWERING = "when answering: "  # of what a method does with finished answers
HEAD = """# The zoo: methods as configs

Written by `python -m experiments.zoo` from [configs/zoo](../configs/zoo): change the configs, not
this page.

Each config is one run. Its docstring has the command, the columns that the data need, the paper's
equation, and what is our choice because the paper leaves it open. Common to all: the whole model
is trained (no [adapter](adapters.md) is set, so learning rates of LoRA runs are not taken over),
videos are [lists of frames](data.md#videos), and the rewards of a run are in [0, 1]. None of the
papers' figures was reproduced. Where a paper and its code differ, the config has the paper's
equation.
"""


def load(path: pathlib.Path) -> ModuleType:
    """A config file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def configs() -> dict[str, ModuleType]:
    """The configs of the zoo by name."""
    return {path.stem: load(path) for path in sorted((ROOT / "configs" / "zoo").glob("*.py"))}


def methods() -> list[dict[str, Any]]:
    """All rows in order, each with FIELDS and `config`, its name or "".

    Raises ValueError on a row that is missing or there twice, and on unknown fields or statuses.
    """
    rows = [{**module.METHOD, "config": name} for name, module in configs().items()]
    text = (ROOT / "configs" / "zoo" / "not_yet.yaml").read_text(encoding="utf-8")
    rows += [{**row, "config": ""} for row in yaml.safe_load(text)]
    for row in rows:
        where = f"{row['config'] or 'not_yet.yaml'}, row {row.get('row')}"
        if row.keys() != FIELDS | {"config"}:
            raise ValueError(f"{where}: the fields are {sorted(row)}; they must be {FIELDS}.")
        if row["status"] not in STATUSES:
            raise ValueError(f"{where}: status {row['status']!r} is none of {list(STATUSES)}.")
        if bool(row["config"]) != (row["status"] in ("works", "your data", "partial")):
            raise ValueError(f"{where}: status {row['status']!r} does not fit; see STATUSES.")
        if not _fits(row["status"], row["missing"]):
            raise ValueError(
                f"{where}: say what is missing, unless the method works; where it does, only what "
                f"begins with {ANSWERING!r} may be missing."
            )
    numbers = sorted(row["row"] for row in rows)
    if numbers != list(ROWS):
        raise ValueError(f"The rows are {numbers}; each of 1 to {ROWS[-1]} must be there once.")
    return sorted(rows, key=lambda row: row["row"])


def _fits(status: str, missing: str) -> bool:
    if status == "works":
        return not missing or missing.startswith(ANSWERING)
    return bool(missing) != (status == "survey")


def page(rows: list[dict[str, Any]]) -> str:
    """docs/zoo.md."""
    lines = [HEAD, "| status | rows | meaning |", "|---|---|---|"]
    for status, meaning in STATUSES.items():
        count = sum(row["status"] == status for row in rows)
        lines.append(f"| {status} | {count} | {meaning} |")
    lines += ["", "| row | method | status | config | what is missing |", "|---|---|---|---|---|"]
    for row in rows:
        config = f"[{row['config']}](../configs/zoo/{row['config']}.py)" if row["config"] else ""
        name = _link(row["name"], row["paper"])
        lines.append(f"| {row['row']} | {name} | {row['status']} | {config} | {row['missing']} |")
    return "\n".join(lines) + "\n"


def _link(name: str, paper: str) -> str:
    if not paper:
        return name
    if paper.startswith("arXiv:"):
        return f"[{name}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})"
    return f"[{name}](https://{paper})"


if __name__ == "__main__":
    PAGE.write_text(page(methods()), encoding="utf-8")
    print(f"wrote {PAGE}")
