"""Pairs as questions: both orders, the same pictures, and an answer that a rule can check."""

import json

import pytest
from PIL import Image

from rubric_jax import config as config_lib
from rubric_jax import stages
from rubric_jax.data import instructions, scenes
from rubric_jax.judges import rules


def test_a_pair_is_asked_in_both_orders(tmp_path):
    (tmp_path / "data").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "a.png")
    row = {"id": "p", "prompt": "<image>How many?", "images": ["a.png"]}
    row |= {"chosen": "Two.", "rejected": [{"role": "assistant", "content": "<image>Three."}]}
    (tmp_path / "data" / "prefs.jsonl").write_text(json.dumps(row))
    data = config_lib.Data(path=str(tmp_path / "data" / "prefs.jsonl"))
    out = tmp_path / "asked" / "instructions.jsonl"
    assert stages.write_questions(data, str(out)) == 2
    first, second = instructions.read(str(out))
    assert (first.id, second.id) == ("p/ab", "p/ba")
    assert (first.answer, second.answer) == ("A", "B")
    assert "Answer A: Two.\n\nAnswer B: Three." in first.text
    assert "Answer A: Three.\n\nAnswer B: Two." in second.text
    assert first.source == second.source == "p"
    assert len(first.instance().images) == 1  # found from where the file lies
    check = {"rule": "answer", "right": second.answer}
    assert rules.bind(check)("<think>Three is wrong.</think> The answer is B.") == 1.0
    assert rules.bind(check)("<think>Two.</think> The answer is A.") == 0.0


def test_scenes_become_questions(tmp_path):
    scenes.write(tmp_path / "data", demos=0, pairs=3, heldout=1)
    data = config_lib.Data(path=str(tmp_path / "data" / "train.jsonl"))
    assert stages.write_questions(data, str(tmp_path / "q.jsonl")) == 6
    assert len(list(instructions.read(str(tmp_path / "q.jsonl")))) == 6


def test_without_data_it_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"config.data.path is empty"):
        stages.write_questions(config_lib.Data(), str(tmp_path / "q.jsonl"))
