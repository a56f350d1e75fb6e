"""Every file of configs/ parses, and its objective fits its branches."""

import importlib.util
import pathlib

import pytest

from rubric_jax import config as config_lib
from rubric_jax import stages
from rubric_jax.train import setup
from tests.stages import jobs

FILES = sorted(pathlib.Path("configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_parses_and_its_docstring_has_the_command(path):
    module = load(path)
    setup.objective(config_lib.build(module.get_config()))
    assert f"--config={path}" in module.__doc__


def test_rdpo_names_what_a_user_has_to_set(tmp_path):
    config = load(pathlib.Path("configs/rdpo_llava.py")).get_config()
    with pytest.raises(ValueError, match=r"config\.pool\.path is empty"):
        stages.Run(config_lib.build(config), str(tmp_path)).check()
    config.pool.path = "instructions.jsonl"
    with pytest.raises(ValueError, match="needs a model and a base_url"):
        stages.Run(config_lib.build(config), str(tmp_path)).check()
    config.judging.judge.update({"model": "m", "base_url": "http://127.0.0.1:9/v1"})
    stages.Run(config_lib.build(config), str(tmp_path)).check()


def test_rdpo_writes_its_rubrics(tmp_path):
    config = load(pathlib.Path("configs/rdpo_llava.py")).get_config()
    config.pool.path = str(jobs.pool() / "instructions.jsonl")
    config.judging.judge.update({"model": "m", "base_url": "http://127.0.0.1:9/v1"})
    job = stages.Run(config_lib.build(config), str(tmp_path))
    job.begin()
    assert job.rubrics()["written"] == 8
