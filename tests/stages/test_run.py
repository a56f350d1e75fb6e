import dataclasses
import json
import pathlib
import shutil
import socket

import numpy as np
import pytest

from rubric_jax import config as config_lib
from rubric_jax import stages
from rubric_jax.data import scenes
from tests.judges import server
from tests.stages import jobs
from tests.train import runs


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(config, work directory, report path) of a whole run."""
    workdir = tmp_path_factory.mktemp("run") / "whole"
    config = jobs.config()
    return config, workdir, stages.Run(config, str(workdir)).all()


def rows(path) -> list[dict]:
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def test_a_run_leaves_every_stage_of_every_round(done):
    _, workdir, page = done
    found = jobs.outcome(workdir)
    for number in (1, 2):
        assert {
            f"round_{number}/{name}"
            for name in ("samples.jsonl", "verdicts.jsonl", "pairs.jsonl", "eval.json")
        } <= found.keys()
        assert (workdir / f"round_{number}" / "policy" / "model.safetensors").exists()
    assert "base/eval.json" in found
    assert pathlib.Path(page).stat().st_size > 10_000


def test_samples_have_ids_logps_and_the_key_of_their_instruction(done):
    _, workdir, _ = done
    samples = rows(workdir / "round_1" / "samples.jsonl")
    assert len(samples) == 8
    verdicts = rows(workdir / "round_1" / "verdicts.jsonl")
    assert [row["key"] for row in verdicts] == [row["key"] for row in samples]
    for row in samples:
        assert len(row["responses"]) == 3
        for response in row["responses"]:
            assert len(response["ids"]) == len(response["logps"]) <= 6
            assert max(response["logps"]) <= 0


def test_rounds_sample_from_the_policy_of_the_round_before(done):
    _, workdir, _ = done
    first, second = (
        json.loads((workdir / f"round_{n}" / "samples.json").read_text()) for n in (1, 2)
    )
    assert first["inputs"]["policy"] != second["inputs"]["policy"]
    trained = json.loads((workdir / "round_2" / "train" / "config.json").read_text())
    assert trained["model"]["checkpoint"] == str(workdir / "round_1" / "policy")
    assert trained["model"]["reference"] == str(workdir / "round_1" / "policy")


def test_the_evaluation_agrees_with_the_ground_truth(done):
    _, workdir, _ = done
    held_out = rows(jobs.pool() / "heldout_instructions.jsonl")
    facts = {row["id"]: scenes.from_facts(row["facts"]) for row in held_out}
    value = json.loads((workdir / "base" / "eval.json").read_text())
    samples = rows(workdir / "base" / "eval" / "samples.jsonl")
    right = [
        scenes.score(facts[row["id"]], row["responses"][0]["text"])["correctness"]
        for row in samples
    ]
    assert value["per_instance"]["id"] == [row["id"] for row in samples]
    assert value["per_instance"]["reward/correctness"] == right
    assert value["measures"]["reward/correctness"]["mean"] == pytest.approx(np.mean(right))


def test_a_second_start_does_nothing(done, monkeypatch):
    config, workdir, _ = done
    before = jobs.outcome(workdir)
    for name in ("sampling.sample", "train.setup.load"):
        monkeypatch.setattr(f"rubric_jax.{name}", None)  # to call it would be an error
    stages.Run(config, str(workdir)).all()
    assert jobs.outcome(workdir) == before


def test_other_sampling_settings_are_refused(done):
    _, workdir, _ = done
    config = jobs.config(sample={"temperature": 0.5})
    with pytest.raises(ValueError, match=r"samples.jsonl was made differently:\n  config.temp"):
        stages.Run(config, str(workdir)).sample(1)


def test_updates_are_shared_out_over_the_rounds(done):
    _, workdir, _ = done
    job = stages.Run(jobs.config(rounds={"updates": 5}), str(workdir))
    assert [job.training(number).train.steps for number in (1, 2)] == [3, 2]


@pytest.mark.parametrize(
    ("rule", "reference"), [("base", "model"), ("fixed", "elsewhere"), ("round", "policy")]
)
def test_the_reference_follows_the_rule(done, rule, reference):
    _, workdir, _ = done
    config = jobs.config(rounds={"reference": rule}, model={"reference": "elsewhere"})
    made = stages.Run(config, str(workdir)).training(2)
    assert made.model.checkpoint == str(workdir / "round_1" / "policy")
    assert pathlib.Path(made.model.reference).name == reference


def test_a_policy_of_another_training_is_refused_and_its_own_is_kept(done, tmp_path):
    config, workdir, _ = done
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "round_1" / "train")  # a user makes room
    record = json.loads((workdir / "round_1" / "policy.json").read_text())
    text = json.dumps(record).replace(str(workdir), str(tmp_path / "run"))
    (tmp_path / "run" / "round_1" / "policy.json").write_text(text)
    assert stages.Run(config, str(tmp_path / "run")).train(1).step == 2
    assert not (tmp_path / "run" / "round_1" / "train").exists()
    other = dataclasses.replace(config, optimizer=config_lib.Optimizer(learning_rate=0.5))
    with pytest.raises(ValueError, match=r"policy was trained differently:\n  optimizer.learn"):
        stages.Run(other, str(tmp_path / "run")).train(1)


def test_pair_accuracy_follows_the_pairs_that_are_named(done, tmp_path):
    _, workdir, _ = done
    shutil.copytree(workdir / "base" / "eval", tmp_path / "base" / "eval")
    shutil.copy(workdir / "rubrics.jsonl", tmp_path)
    pairs = runs.root() / "data" / "heldout.jsonl"
    # Pairs are no rated lists, whatever the training data are.
    lists = {"rated": {"pairs": "best_vs_rest"}}
    job = jobs.config(data=lists, evaluation={"pairs": str(pairs)})
    job = stages.Run(job, str(tmp_path))
    found = job.eval(0)["measures"]["pair accuracy"]
    assert (found["mean"], found["n"]) == (0.5, 8)  # of the base against itself
    other = tmp_path / "other.jsonl"
    other.write_text("".join(line + "\n" for line in pairs.read_text().splitlines()[:4]))
    (tmp_path / "images").symlink_to(runs.root() / "data" / "images")
    job = stages.Run(jobs.config(evaluation={"pairs": str(other)}), str(tmp_path))
    with pytest.raises(ValueError, match=r"pairs.npz was made differently:\n  inputs.pairs"):
        job.eval(0)


def test_the_evaluation_has_an_aggregation_of_its_own(done, tmp_path):
    _, workdir, _ = done
    shutil.copytree(workdir / "base", tmp_path / "base")
    shutil.copy(workdir / "rubrics.jsonl", tmp_path)
    before = json.loads((workdir / "base" / "eval.json").read_text())
    config = jobs.config(pair={"aggregation": {"aggregation": "outcome"}})
    assert stages.Run(config, str(tmp_path)).eval(0)["measures"] == before["measures"]
    assert before["judge"]["judge"] == "oracle"
    assert before["aggregation"] == {"aggregation": "weighted_mean"}


def test_samples_that_vanished_are_made_again(done, tmp_path):
    _, workdir, _ = done
    (tmp_path / "round_1").mkdir()
    shutil.copy(workdir / "round_1" / "samples.json", tmp_path / "round_1")
    stages.Run(jobs.config(), str(tmp_path)).sample(1)
    samples = tmp_path / "round_1" / "samples.jsonl"
    assert samples.read_bytes() == (workdir / "round_1" / "samples.jsonl").read_bytes()


def test_pairs_know_the_instructions_they_were_made_from(done, tmp_path):
    """A reference response is part of the instructions, not of what was judged."""
    _, workdir, _ = done
    shutil.copytree(workdir / "round_1", tmp_path / "round_1")
    changed = [row | {"reference": "another ."} for row in rows(jobs.pool() / "instructions.jsonl")]
    path = jobs.pool() / "references.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in changed))
    with pytest.raises(ValueError, match=r"pairs.jsonl was made differently:\n  inputs.instr"):
        stages.Run(jobs.config(pool={"path": str(path)}), str(tmp_path)).pair(1)


def test_lists_have_as_many_branches_as_the_policy_has_responses():
    recipe = {"recipe": "listwise", "count": 0}
    config = jobs.config(
        pair={"recipe": recipe, "other": str(runs.root() / "model")},
        objective={"plackett_luce": {"branches": "response_*"}},
    )
    job = stages.Run(config, "nowhere")
    assert job.training_data().branches == ("response_0", "response_1", "response_2")


# Wrong input.


def test_instructions_and_samples_that_do_not_belong_together(done, tmp_path):
    _, workdir, _ = done
    shutil.copytree(workdir / "round_1", tmp_path / "round_1")
    shutil.copy(workdir / "rubrics.jsonl", tmp_path)
    for name in ("verdicts", "pairs"):
        (tmp_path / "round_1" / f"{name}.json").unlink()
        (tmp_path / "round_1" / f"{name}.jsonl").unlink()
    other = jobs.pool() / "heldout_instructions.jsonl"
    config = jobs.config(pool={"path": str(other)})
    with pytest.raises(ValueError, match="do they belong together"):
        stages.Run(config, str(tmp_path)).judge(1)
    # The same ids, and other text.
    changed = [
        row | {"prompt": "<image> what else ?"} for row in rows(jobs.pool() / "instructions.jsonl")
    ]
    path = jobs.pool() / "changed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in changed))
    job = stages.Run(jobs.config(pool={"path": str(path)}), str(tmp_path))
    job.rubrics()
    with pytest.raises(ValueError, match=r"changed.jsonl:1: text or pictures of .* are not those"):
        job.judge(1)


def test_no_pair_at_all_names_the_reasons(done, tmp_path):
    config, workdir, _ = done
    shutil.copytree(workdir / "round_1", tmp_path / "round_1")
    for file in (tmp_path / "round_1").glob("pairs.json*"):
        file.unlink()
    config = dataclasses.replace(config, pair=config_lib.Pair(recipe={"recipe": "rubric"}))
    with pytest.raises(ValueError, match=r"No pair among the responses to 8 instructions:\n  \d x"):
        stages.Run(config, str(tmp_path)).pair(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": {"path": ""}}, "config.pool.path is empty"),
        ({"judging": {"judge": {}}}, "config.judging.judge is empty"),
        ({"judging": {"judge": {"judge": "oracel"}}}, "Unknown judge 'oracel'.*'oracle'"),
        ({"pool": {"writer": {"writer": "oracl"}}}, "Unknown rubric writer 'oracl'.*'oracle'"),
        ({"pair": {"recipe": {"recipe": "rubrik"}}}, "Unknown recipe 'rubrik'.*'rubric'"),
        ({"pair": {"recipe": {"recipe": "rubric", "margn": 1}}}, "no knob 'margn'.*'margin'"),
        ({"pair": {"aggregation": {"aggregation": "mean"}}}, "Unknown aggregation 'mean'"),
        ({"evaluation": {"measures": ("reward",)}}, "Unknown evaluation 'reward'.*'rewards'"),
        ({"rounds": {"reference": "fixed"}}, "config.model.reference is empty"),
        ({"rounds": {"updates": 1}}, "updates is 1 for 2 rounds"),
        ({"objective": {"dop": {}}}, "Unknown config.objective.dop"),
    ],
)
def test_a_wrong_config_is_refused_before_anything_is_made(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        stages.Run(jobs.config(**change), str(tmp_path / "run")).begin()
    assert not (tmp_path / "run").exists()


def test_a_stage_without_its_input_names_the_command(tmp_path):
    job = stages.Run(jobs.config(), str(tmp_path))
    with pytest.raises(ValueError, match=r"No rubric for the instance .* command `rubrics`"):
        job.judge(1)
    job.rubrics()
    with pytest.raises(ValueError, match="make it with the command `sample`"):
        job.judge(1)
    job.sample(1)
    with pytest.raises(ValueError, match="make it with the command `judge`"):
        job.pair(1)
    with pytest.raises(ValueError, match="train round 1 first"):
        job.sample(2)


def test_a_judge_that_is_down_costs_nothing_that_was_judged(done, tmp_path):
    """Some calls fail for good; the next start asks for those alone."""
    _, workdir, _ = done
    (tmp_path / "round_1").mkdir()
    for name in ("samples.jsonl", "samples.json"):
        shutil.copy(workdir / "round_1" / name, tmp_path / "round_1")
    shutil.copy(workdir / "rubrics.jsonl", tmp_path)
    with server.Server() as s:
        judge = {"judge": "openai", "model": "m", "base_url": s.url}
        judge["server"] = {"concurrency": 1, "retries": 0, "backoff": 0.0}
        job = stages.Run(jobs.config(judging={"judge": judge}), str(tmp_path))
        s.script("good", 500, "good")
        with pytest.raises(ValueError, match=r"1 of 24 verdicts failed, such as: .*500"):
            job.judge(1)
        calls = len(s.calls)
        assert job.judge(1)["statuses"] == {"scored": 24}
        assert len(s.calls) == calls + 1
    (tmp_path / "round_1" / "verdicts.jsonl").unlink()
    (tmp_path / "round_1" / "verdicts.json").unlink()
    assert job.judge(1)["statuses"] == {"scored": 24}  # with the server gone


@pytest.mark.slow
def test_killed_in_every_stage_a_run_ends_the_same(tmp_path):
    """SIGKILL, again and again: the numbers are those of the run that was left alone, and only what
    was under way when it struck is judged again."""
    run, alone = tmp_path / "killed", tmp_path / "alone"
    with server.Server(server.poor) as s:
        judge = {"judge": "openai", "model": "m", "base_url": s.url, "server": {"concurrency": 2}}
        # Two batches of samples, so that a kill may come between them.
        config = jobs.config(judging={"judge": judge}, sample={"batch_size": 4})
        moments = [
            lambda: _lines(run / "rubrics.jsonl") >= 3,
            lambda: _lines(run / "round_1" / "samples.jsonl") >= 4,
            lambda: (run / "round_1" / "verdicts.json").exists() and len(s.calls) > 12,
            lambda: (run / "round_1" / "train" / "config.json").exists(),
            lambda: (run / "round_2" / "train" / "metrics.jsonl").exists(),
        ]
        killed = [jobs.kill_when(jobs.start(config, run), moment) for moment in moments]
        assert sum(killed) >= 4  # a moment may pass unseen: the run then ends
        jobs.finish(config, run)
        asked = [json.dumps(call, sort_keys=True) for call in s.calls]
        s.calls.clear()
        jobs.finish(config, alone)
        once = {json.dumps(call, sort_keys=True) for call in s.calls}
    assert set(asked) == once
    assert len(asked) - len(once) <= 2 * sum(killed)  # two calls are under way at a time
    a, b = jobs.outcome(run), jobs.outcome(alone)
    assert a.keys() == b.keys()
    different = [name for name in a if a[name] != b[name]]
    assert not different


@pytest.mark.sweep
def test_two_processes_run_the_pipeline_together(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    mesh = {"data": 2, "distributed": True, "processes": 2, "coordinator": f"localhost:{port}"}
    common = {"rounds": {"count": 1}, "sample": {"batch_size": 4}}
    one = jobs.config(**common, mesh={"data": 1})
    two = [jobs.config(**common, mesh={**mesh, "process": i}) for i in (0, 1)]
    (tmp_path / "two").mkdir()
    both = [
        jobs.start(config, tmp_path / "two", log=f"{tmp_path}/{i}") for i, config in enumerate(two)
    ]
    jobs.finish(one, tmp_path / "one")
    for i, process in enumerate(both):
        process.wait(300)
        assert process.returncode == 0, pathlib.Path(f"{tmp_path}/{i}").read_text()[-3000:]
    a, b = jobs.outcome(tmp_path / "one"), jobs.outcome(tmp_path / "two")
    assert a.keys() == b.keys()
    texts = [
        [
            r["text"]
            for row in rows(tmp_path / name / "round_1" / "samples.jsonl")
            for r in row["responses"]
        ]
        for name in ("one", "two")
    ]
    assert np.mean([x == y for x, y in zip(*texts, strict=True)]) > 0.9  # but for rounding
    assert (tmp_path / "two" / "report.html").exists()


def _lines(path: pathlib.Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
