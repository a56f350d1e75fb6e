"""Training that samples, judges and steps: against batches made by hand, and against itself."""

import dataclasses
import json
import pathlib
import socket
import subprocess
import sys
from typing import NamedTuple

import jax
import numpy as np
import pytest

from rubric_jax import config as config_lib
from rubric_jax import recipes, sampling, sharding, stages, types
from rubric_jax.data import scenes
from rubric_jax.recipes import groups as groups_lib
from rubric_jax.stages import batching, online
from rubric_jax.stages import sample as sample_stage
from rubric_jax.train import loop
from rubric_jax.train import setup as setup_lib
from tests.recipes import toy
from tests.stages import jobs
from tests.train import runs

GROUP = tuple(f"response_{k}" for k in range(4))
GRPO = {"over": "response_*", "weights": [1.0, 0.0], "behaviour": "sampler", "beta_kl": 0.01}
DRAWN = {
    "branches": (*GROUP, *(f"{name}@corrupted" for name in GROUP)),
    "contexts": {"corrupted": {"corruption": "gaussian_noise", "std": 0.1, "when": "step"}},
}
# A word of four in a response of six: a random model says one now and then.
WORDS = {
    "writer": "rules",
    "rules": {
        "says": {"rule": "pattern", "pattern": r"\b(circle|red|yes|two)\b", "axis": "word"},
        "short": {"rule": "length", "words": 3, "slack": 3, "axis": "length"},
    },
}


def config(**groups) -> config_lib.Config:
    """GRPO on four responses to 8 instructions in every turn, on one device."""
    made = {
        "pool": {"eval_path": "", "writer": WORDS},
        "judging": {"judge": {"judge": "rules"}},
        "pair": {"recipe": {"recipe": "group"}},
        "data": {"path": "", "branches": GROUP, "axes": ("word", "length"), "buckets": 1},
        "sample": {"count": 4},
        "objective": {"grpo": GRPO},
        "train": {"steps": 2, "reference": "step", "log_every": 1, "checkpoint_every": 2},
        "optimizer": {"learning_rate": 1e-2},
        "rounds": {"count": 1},
        "online": {"updates": 1},
        "mesh": {"data": -1},
    }
    for name, values in groups.items():
        made[name] = {**made.get(name, {}), **values} if name not in ("objective",) else values
    return jobs.config(**made)


def lines(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def train(made, workdir):
    run = stages.Run(made, str(workdir))
    run.begin()
    run.rubrics()
    return run, run.train(1)


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Programs for one device compile in half of the time."""
    original = sharding.make
    with pytest.MonkeyPatch.context() as patch:
        alone = config_lib.Mesh(data=1)
        patch.setattr(sharding, "make", lambda *_: original(alone, jax.devices()[:1]))
        yield


class Learnt(NamedTuple):
    run: stages.Run
    setup: setup_lib.Setup
    functions: loop.Functions  # compiled already


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A run of 24 steps, two on each batch."""
    made = config(train={"steps": 24, "checkpoint_every": 100}, online={"updates": 2})
    kept = []

    def compile_functions(setup, objective, steps):
        kept.append((setup, original(setup, objective, steps)))
        return kept[-1][1]

    original = loop.compile_functions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compile_functions", compile_functions)
        run, outcome = train(made, tmp_path_factory.mktemp("online"))
    assert outcome == loop.Outcome(24, True, {})
    return Learnt(run, *kept[0])


@pytest.mark.slow
def test_the_policy_learns_what_the_judge_rewards(learnt):
    run = learnt.run
    reward = [line["sample/reward/word"] for line in runs.metrics(run.path(1, "train"))]
    assert len(reward) == 24
    assert np.mean(reward[-6:]) > np.mean(reward[:6]) + 0.2
    assert pathlib.Path(run.path(1, "policy", "model.safetensors")).exists()
    assert pathlib.Path(run.report()).exists()


@pytest.mark.slow
def test_metrics_tell_how_the_samples_were(learnt):
    run = learnt.run
    found = runs.metrics(run.path(1, "train"))
    for line in found:
        assert 0 < line["sample/tokens"] <= 6
        assert 0 <= line["sample/finished"] <= 1
        assert (line["sample/rows"], line["sample/unjudged"]) == (1.0, 0.0)
        assert line["seconds/sample"] > 0
    # Both steps of a turn are on the same samples.
    assert found[0]["sample/reward"] == found[1]["sample/reward"] != found[2]["sample/reward"]
    shown = lines(run.path(1, "train", online.SHOWN))
    assert [row["step"] for row in shown] == list(range(0, 24, 2))
    assert {len(row["responses"]) for row in shown} == {4}


@pytest.mark.slow
def test_the_ratio_is_against_the_sampler_and_the_divergence_against_the_reference(learnt):
    run = learnt.run
    first, second, third = runs.metrics(run.path(1, "train"))[:3]
    for line in (first, third):  # on the very policy that sampled
        assert line["grpo/ratio"] == pytest.approx(1.0, abs=1e-5)
        assert line["grpo/clipped"] == 0.0
    assert abs(second["grpo/ratio"] - 1) > 1e-5
    assert first["grpo/kl"] == pytest.approx(0.0, abs=1e-9)
    assert third["grpo/kl"] > 1e-5


@pytest.mark.slow
def test_a_second_start_does_nothing(learnt, monkeypatch):
    run = learnt.run
    monkeypatch.setattr(sampling, "sample", None)
    assert run.train(1).step == 24


@pytest.mark.slow
def test_the_first_step_is_that_of_a_batch_made_by_hand(learnt):
    run, setup, functions = learnt
    training = run.training(1)
    objective = setup_lib.objective(training)
    bare = dataclasses.replace(setup, layout=types.PROMPTS)
    source = setup_lib.source(bare, training.pool.path, "train", training.data.cache)
    plan = setup_lib.plan(setup, source, shuffle=True)
    ids = [str(source.index["id"][row]) for row in plan(0)[1]]
    (prompts, _) = next(iter(setup_lib.batches(setup, source, plan, stop=1)))
    with jax.set_mesh(setup.mesh):
        params = setup_lib.load(setup)
        found = sampling.sample(
            setup.vlm,
            params,
            sharding.put_batch(prompts, setup.mesh),
            sample_stage.seeds("1/online/0", ids, np.arange(8)),
            count=4,
            length=6,
            temperature=1.0,
            stop=setup.processor.eos_ids,
        )
        found = jax.device_get(found)
        texts = [[setup.processor.decode(t[m]) for t, m in zip(*row)] for row in zip(*found[:2])]
        words = {"circle", "red", "yes", "two"}
        rewards = np.zeros((8, 4, 2), np.float32)
        rewards[..., 0] = [[bool(words & set(text.split())) for text in row] for row in texts]
        rewards[..., 1] = [[min(1, max(0, 2 - len(t.split()) / 3)) for t in row] for row in texts]
        labels = types.Labels(
            rewards, np.ones(8, np.float32), np.zeros(8, np.float32), np.zeros(8, np.int32)
        )
        batch = prompts._replace(
            responses=found.ids,
            mask=found.mask.astype(np.float32),
            labels=labels,
            behaviour=found.logps,
        )
        reference = setup_lib.load(setup)
        placed = sharding.put_batch(batch, setup.mesh)
        _, values = functions.step(functions.start(params), placed, objective.knobs, reference)
    line = runs.metrics(run.path(1, "train"))[0]
    assert rewards[..., 0].mean() == pytest.approx(line["sample/reward/word"])
    for name in ("loss", "grad_norm", "update_norm", "grpo/kl"):
        assert float(values[name]) == pytest.approx(line[name], rel=1e-4, abs=1e-7), name


@pytest.mark.slow
def test_samples_come_from_the_policy_under_its_adapter(tmp_path):
    adapter = {"rank": 2, "targets": ((r"decoder/.*/[qv]/kernel", True), (r".*", False))}
    made = config(model={"adapter": adapter}, optimizer={"learning_rate": 0.1}, train={"steps": 3})
    run, _ = train(made, tmp_path)
    for line in runs.metrics(run.path(1, "train")):  # on the very policy that sampled
        assert line["grpo/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert line["grpo/kl"] > 1e-4  # which has left its base
    assert pathlib.Path(run.path(1, "adapter", "adapter_config.json")).exists()
    assert pathlib.Path(run.path(1, "policy", "model.safetensors")).exists()


@pytest.mark.slow
def test_best_against_worst_of_the_fresh_samples(tmp_path):
    made = config(
        data={"branches": ("chosen", "rejected")},
        pair={"recipe": {"recipe": "rubric", "pairs": 1, "finished": False, "unfailed": False}},
        objective={"dpo": runs.PAIR},
        train={"steps": 3},
        online={"shown": 8},
    )
    run, _ = train(made, tmp_path)
    first, *_, last = runs.metrics(run.path(1, "train"))
    shown = [row for row in lines(run.path(1, "train", online.SHOWN)) if row["step"] == 0]
    totals = np.array([[r["reward"] for r in row["responses"]] for row in shown])
    assert first["sample/reward"] == pytest.approx(totals.mean())
    assert first["sample/rows"] == pytest.approx(np.mean(np.ptp(totals, axis=1) >= 0.15))
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert last["loss"] != first["loss"]


@pytest.mark.slow
def test_offline_pairs_and_fresh_samples_in_one_batch(tmp_path):
    """HyPO: the columns of a row as they stand, beside samples that nobody judges."""
    made = config(
        pool={"path": str(runs.root() / "data" / "train.jsonl")},
        data={"branches": ("chosen", "rejected", *GROUP), "axes": ()},
        pair={"recipe": {"recipe": "group", "judged": False}},
        judging={"judge": {}},
        objective={"dpo": runs.PAIR, "reverse_kl": {"weight": 0.05, "over": "response_*"}},
        train={"steps": 2},
    )
    run = stages.Run(made, str(tmp_path))
    run.begin()
    run.train(1)
    first, second = runs.metrics(run.path(1, "train"))
    assert first["loss/dpo"] == pytest.approx(np.log(2), abs=1e-5)
    assert first["loss/reverse_kl"] == pytest.approx(0.0, abs=1e-4)
    assert second["loss/dpo"] != first["loss/dpo"]
    assert first["sample/rows"] == 1.0
    assert "sample/reward" not in first
    assert not (tmp_path / "rubrics.jsonl").exists()


# Parts.


def test_branches_read_the_samples_that_the_recipe_names():
    layout = types.Layout.of(("chosen", "rejected", "chosen@corrupted"))
    made = config(
        data={"branches": layout.branches, "axes": toy.AXES},
        pair={"recipe": {"recipe": "rubric", "pairs": 1}},
    )
    setup = dataclasses.replace(_bare(made), layout=layout)
    group = toy.group(toy.scored((0, 1), (1, 1), (0, 0)), name="a")
    (row,) = recipes.build(made.pair.recipe)([group], toy.AXES, seed=0).rows
    objective = _Needs(axis=True)
    choice = batching.choose(setup, [None, row], objective)
    assert choice.pick.tolist() == [[-1, -1, -1], [1, 2, 1]]
    assert choice.rewards[1].tolist() == [[1, 1], [0, 0], [1, 1]]
    assert (choice.weight.tolist(), choice.axis.tolist()) == ([0, 1], [0, 0])
    ids = np.arange(2 * 3 * 4, dtype=np.int32).reshape(2, 3, 4) + 1
    mask = np.arange(4) < np.array([[1, 2, 3], [4, 3, 2]])[..., None]
    found = sampling.Samples(ids, mask, -ids.astype(np.float32), mask[..., 0])
    loaded = types.Batch(np.zeros((2, 2, 5)), np.ones((2, 2)), {}, np.zeros((2, 0, 3)), None, None)
    batch = batching.assemble(setup, loaded, found, choice)
    assert not batch.mask[0].any()
    np.testing.assert_array_equal(batch.mask[1].sum(axis=-1), [3, 2, 3])
    np.testing.assert_array_equal(batch.responses[1, 0], [17, 18, 19, 0])
    np.testing.assert_array_equal(batch.behaviour[1, 1], [-21, -22, 0, 0])
    listed = groups_lib.Row(group="a", branches={}, rewards={})
    with pytest.raises(ValueError, match="needs the axis that ordered each pair"):
        batching.choose(setup, [listed], objective)


@dataclasses.dataclass
class _Needs:
    axis: bool

    @property
    def needs_axis(self):
        return self.axis


def _bare(made):
    return setup_lib.Setup(
        config=made,
        directory=pathlib.Path(),
        vlm=None,
        processor=None,
        layout=types.Layout.of(made.data.branches),
        mesh=None,
    )


def test_a_share_of_failed_verdicts_stops_the_run(tmp_path):
    made = config()
    run = stages.Run(made, str(tmp_path))
    run.begin()
    run.rubrics()
    jury = run._jury()

    def score(requests, journal):
        for request in requests:
            failed = request.id.endswith("/0")
            yield request, online.judges.Verdict("failed" if failed else "scored", {}, ("down",))

    broken = jury.judge._replace(score=score)
    texts = [[{"text": f"{k}", "ids": [k], "finished": True} for k in range(4)]]
    names = [next(iter(jury.rubrics))]
    setup = dataclasses.replace(_bare(run.training(1)), mesh=sharding.make(made.mesh))
    for failures, stops in ((0.0, True), (0.001, False)):
        jury = dataclasses.replace(jury, judge=broken, failures=failures)
        maker = online.Maker(setup, None, run._asked, jury, str(tmp_path), 0)
        if stops:
            with pytest.raises(ValueError, match=r"1 of 4 verdicts failed, such as: down"):
                maker._items(0, names, texts)
            continue
        (item,) = maker._items(0, names, texts)  # one of at least 1000
        assert [r.scores is None for r in item["responses"]] == [True, False, False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"reference": "cache"}}, "set config.train.reference to 'step'"),
        ({"objective": {"grpo": {**GRPO, "behaviour": "reference"}}}, "it must be 'sampler'"),
        ({"pair": {"recipe": {"recipe": "perturbation"}}}, "more than the samples of one step"),
        ({"pair": {"recipe": {"recipe": "rubric"}}}, "config.pair.recipe.pairs to 1"),
        ({"pair": {"other": "elsewhere"}}, "config.pair.other has no place"),
        ({"judging": {"judge": {}}}, "config.judging.judge is empty"),
        ({"data": {"branches": ("response_0@corrupted", *GROUP)}}, "put a branch under the pic"),
        ({"data": DRAWN}, r"config.data.contexts.corrupted.when is 'step'.*take 'when': 'data'"),
        ({"data": {"eval_path": "pairs.jsonl"}}, "behaviour is 'sampler', but.*to 'policy', or"),
        ({"data": {"weights": {"draw": "dirichlet"}}}, "config.data.weights has no place"),
        ({"data": {"differences": GROUP[:2]}}, "config.data.differences has no place"),
        ({"data": {"curriculum": {"by": "gap"}}}, "config.data.curriculum.by is 'gap'.*'level'"),
        ({"data": {"view": {"by": "gap", "win": GROUP[0]}}}, "config.data.view.by is 'gap'"),
        ({"objective": {"grpo": {**GRPO, "with": {"spans": {}}}}}, "take the modifier `spans` out"),
        ({"objective": {"grpo": {**GRPO, "weights": "prompt"}}}, "give the weights as numbers"),
        ({"online": {"updates": 0}}, "'group' is for samples of every step"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        stages.Run(config(**change), str(tmp_path / "run")).begin()
    assert not (tmp_path / "run").exists()


def test_stored_samples_have_no_sampler(tmp_path):
    made = jobs.config(
        pair={"recipe": {"recipe": "listwise", "count": 3}},
        data={"branches": ("response_0", "response_1", "response_2"), "axes": scenes.AXES},
        objective={"grpo": {**GRPO, "weights": [1.0, 0, 0, 0]}},
    )
    with pytest.raises(ValueError, match=r"behaviour is 'sampler', and config.online.updates is 0"):
        stages.Run(made, str(tmp_path)).begin()


def test_an_axis_without_a_criterion_is_named(tmp_path):
    made = config(
        data={"axes": ("word", "length", "style")},
        objective={"grpo": {**GRPO, "weights": [1.0, 0.0, 1.0]}},
    )
    with pytest.raises(ValueError, match="no rubric has a criterion for style"):
        train(made, tmp_path)


def test_stages_that_there_are_not_say_so(tmp_path):
    run = stages.Run(config(), str(tmp_path))
    for stage in (run.sample, run.judge, run.pair):
        with pytest.raises(ValueError, match=r"With config.online.updates there is no stage"):
            stage(1)
    with pytest.raises(ValueError, match="use the command `run`"):
        stages.train(config(), str(tmp_path))


@pytest.mark.sweep
def test_killed_at_any_time_it_ends_with_the_same_bits(tmp_path):
    made = config(
        train={"steps": 8, "checkpoint_every": 2},
        online={"updates": 2},
    )
    run, alone = tmp_path / "killed", tmp_path / "alone"
    folder = run / "round_1" / "train"
    moments = [
        lambda: (folder / "metrics.jsonl").exists() and jobs_lines(folder / "metrics.jsonl") >= 1,
        lambda: (folder / "checkpoints" / "4").exists(),
        lambda: (folder / "checkpoints" / "6").exists(),
    ]
    killed = [jobs.kill_when(jobs.start(made, run), moment) for moment in moments]
    assert sum(killed) >= 2
    jobs.finish(made, run)
    jobs.finish(made, alone)
    runs.assert_same_bits(folder, alone / "round_1" / "train")
    shown = [path / "round_1" / "train" / online.SHOWN for path in (run, alone)]
    assert shown[0].read_text() == shown[1].read_text()
    found = [_timeless(path / "round_1" / "train") for path in (run, alone)]
    assert found[0] == found[1]


@pytest.mark.sweep
def test_two_processes_do_as_one(tmp_path):
    """Each samples its rows, the first one judges them all, and both step alike."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    mesh = {"data": 2, "distributed": True, "processes": 2, "coordinator": f"localhost:{port}"}
    # A large eps: Adam would make steps of full size out of rounding where a gradient is 0.
    common = {"optimizer": {"learning_rate": 0.3, "knobs": {"eps": 1.0}}, "train": {"steps": 3}}
    (tmp_path / "two").mkdir()
    both = [
        jobs.start(
            config(**common, mesh={**mesh, "process": i}), tmp_path / "two", log=f"{tmp_path}/{i}"
        )
        for i in (0, 1)
    ]
    for i, process in enumerate(both):
        process.wait(300)
        assert process.returncode == 0, pathlib.Path(f"{tmp_path}/{i}").read_text()[-3000:]
    jobs.finish(config(**common), tmp_path / "one")
    one, two = (_timeless(tmp_path / name / "round_1" / "train") for name in ("one", "two"))
    assert len(one) == len(two) == 3
    assert one[0]["sample/reward"] == two[0]["sample/reward"]
    for name in ("grad_norm", "grpo/kl", "sample/tokens", "update_norm"):
        found, wanted = ([line[name] for line in lines] for lines in (two, one))
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-7, err_msg=name)


# argv: coordinator, process. The rows of process 1 alone are ordered by an axis without weight.
CHECK = """
import sys
import jax
import numpy as np
from rubric_jax import objectives, types
from rubric_jax.stages import online
process = int(sys.argv[2])
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=process)
pair = {"win": "chosen", "lose": "rejected", "weights": [1.0, 0.0]}
layout = types.Layout.of(("chosen", "rejected"))
objective = objectives.build({"modpo": {**pair, "beta": 0.1}}, layout, ("word", "length"))
axis = np.full(2, process, np.int32)
labels = types.Labels(np.zeros((2, 2, 2), np.float32), np.ones(2), np.zeros(2), axis)
try:
    online._check_labels(objective, labels)
except ValueError as error:
    print("refused:", error)
"""


@pytest.mark.slow
def test_all_processes_refuse_a_row_of_one():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        coordinator = f"localhost:{probe.getsockname()[1]}"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", CHECK, coordinator, str(process)],
            cwd=runs.ROOT,
            env=runs.environment(devices=1),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in (0, 1)
    ]
    for process in both:
        found = process.communicate(timeout=120)[0]
        assert "refused: Row 2 is ordered by axis 1, whose weight is 0.0" in found, found[-3000:]


def _timeless(workdir):
    return [{k: v for k, v in line.items() if "second" not in k} for line in runs.metrics(workdir)]


def jobs_lines(path):
    return path.read_bytes().count(b"\n")
