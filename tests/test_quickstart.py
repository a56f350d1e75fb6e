import pytest

from rubric_jax import quickstart, stages
from rubric_jax.data import scenes


def test_the_job_is_a_run_that_can_begin(tmp_path):
    config = quickstart.rdpo(tmp_path, tmp_path / "base")
    stages.Run(config, str(tmp_path)).check()
    assert tuple(quickstart.WEIGHTS) == config.data.axes == scenes.AXES


def test_scenes_of_other_settings_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "DEMONSTRATIONS", 3)
    monkeypatch.setattr(quickstart, "HELD_OUT", 2)
    monkeypatch.setattr(quickstart.scenes, "write_model", lambda *a, **k: None)
    quickstart.write_scenes(tmp_path, pairs=2)
    before = (tmp_path / "data" / "facts.jsonl").stat().st_mtime_ns
    quickstart.write_scenes(tmp_path, pairs=2)
    assert (tmp_path / "data" / "facts.jsonl").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"facts.jsonl was made differently:\n  config.pairs"):
        quickstart.write_scenes(tmp_path, pairs=3)
