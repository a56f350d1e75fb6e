"""Trained policies beside a record of the training they come from.

round_1/policy/        a Hugging Face directory; appears whole
round_1/policy.json    {"config": {...}, "inputs": {"pairs": "5f1c..", "start": ".."}, "step": 39}
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from rubric_jax import checkpoint
from rubric_jax import config as config_lib


def place(policy: str, config: Mapping[str, Any], inputs: Mapping[str, str], step: int) -> None:
    """Makes POLICY out of POLICY.part, and its record."""
    record = {"config": config, "inputs": dict(inputs), "step": step}
    pathlib.Path(policy + ".json").write_text(json.dumps(record, indent=1))
    os.replace(policy + ".part", policy)


def step_of(policy: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> int | None:
    """The step of an exported policy; None if there is none.

    Raises ValueError if it comes from another training than this config asks for.
    """
    if not os.path.isdir(policy):
        return None
    try:
        record = json.loads(pathlib.Path(policy + ".json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{policy} is there, but {policy}.json does not say which training it comes from "
            f"({error}); move the directory away to train it again."
        ) from None
    lines = config_lib.differences(record["config"], config)
    lines = [line for line in lines if not checkpoint.harmless(line)]
    lines += config_lib.differences(record["inputs"], inputs)
    if lines:
        shown = "\n  ".join(lines)
        raise ValueError(
            f"{policy} was trained differently:\n  {shown}\nSet these back, take another "
            "--workdir, or remove policy/ and train/ of this round, and the rounds after it."
        )
    return record["step"]
