"""The oracle of scenes: its rubrics, its verdicts, its noise."""

import json
import random

import numpy as np
import pytest

from rubric_jax import judges
from rubric_jax.data import scenes
from rubric_jax.judges import oracle, verdicts
from rubric_jax.rubrics import aggregation, arrays, records
from tests.judges import toy

TWO = next(
    i for i in range(100) if len(toy.scene(i).scene.things) == 2 and toy.scene(i).kind == "count"
)


def judged(judge, requests):
    return [v for _, v in judge.score(requests, verdicts.no_journal)]


def test_a_rubric_names_the_answer_and_every_thing():
    rubric = toy.rubric(TWO)
    assert [c.id for c in rubric.criteria] == [
        "answer",
        "nothing_invented",
        "thing_1",
        "thing_2",
        "format",
    ]
    assert toy.scene(TWO).answer in rubric.criteria[0].text
    assert {c.axis for c in rubric.criteria} == set(scenes.AXES)
    assert [c.kind for c in rubric.criteria[:3]] == ["essential", "essential", "additional"]
    assert records.parse(json.loads(records.to_json(rubric)), where="x") == rubric


def test_the_right_response_meets_every_criterion_and_silence_none():
    (right, empty) = judged(oracle.oracle(), [toy.request(TWO), toy.request(TWO, "")])
    assert set(right.scores.values()) == {1.0}
    assert set(empty.scores.values()) == {0.0}
    assert right.status == empty.status == "scored"


@pytest.mark.parametrize(
    ("axis", "ids"),
    [
        ("correctness", {"answer"}),
        ("grounding", {"nothing_invented"}),
        ("completeness", {"thing_1", "thing_2"}),
        ("format", {"format"}),
    ],
)
def test_a_flaw_on_one_axis_costs_its_criteria_only(axis, ids):
    for seed in range(5):
        text = scenes.corrupt(toy.scene(TWO), [axis], random.Random(seed))
        (verdict,) = judged(oracle.oracle(), [toy.request(TWO, text)])
        flawed = {ident for ident, score in verdict.scores.items() if score < 1}
        assert flawed
        assert flawed <= ids


def test_rewards_agree_with_the_scores_of_scenes():
    for seed in range(10):
        instance, rng = toy.scene(seed), random.Random(seed)
        text = scenes.corrupt(instance, rng.sample(scenes.AXES, 2), rng)
        (verdict,) = judged(oracle.oracle(), [toy.request(seed, text)])
        stacked = arrays.stack([toy.rubric(seed)], [[verdict.scores]], scenes.AXES)
        axes = aggregation.weighted_mean(stacked).axes[0, 0]
        true = scenes.score(instance, text)
        for a in ("correctness", "completeness", "format"):
            assert float(axes[scenes.AXES.index(a)]) == pytest.approx(true[a])


def test_noise_has_its_rate_and_its_seed_and_stays_on_the_scale():
    requests = [toy.request(i) for i in range(200)]
    clean = judged(oracle.oracle(), requests)
    noisy = judged(oracle.oracle(noise=0.3, seed=1), requests)
    flips = [
        n.scores[c.id] != v.scores[c.id]
        for n, v, r in zip(noisy, clean, requests)
        for c in r.rubric.criteria
    ]
    assert np.mean(flips) == pytest.approx(0.3, abs=0.05)
    assert {s for v in noisy for s in v.scores.values()} <= {0.0, 0.5, 1.0}
    assert judged(oracle.oracle(noise=0.3, seed=1), requests[::-1]) == noisy[::-1]
    assert judged(oracle.oracle(noise=0.3, seed=2), requests) != noisy


def test_the_rubric_of_another_instance_is_judged_by_what_it_says():
    other = next(i for i in range(100) if toy.scene(i).scene != toy.scene(TWO).scene)
    request = toy.request(TWO, scenes.reference(toy.scene(other)), rubric=toy.rubric(other))
    (verdict,) = judged(oracle.oracle(), [request])
    assert set(verdict.scores.values()) == {1.0}


def test_the_holistic_oracle_gives_one_mark_from_the_scale(tmp_path):
    judge = oracle.oracle_holistic()
    texts = [scenes.reference(toy.scene(TWO)), "i see nothing", ""]
    requests = [toy.request(TWO, text, id=text or "-") for text in texts]
    found, _ = judges.collect(judge, requests, judges.Store(str(tmp_path / "v.sqlite")))
    assert [dict(found[r.id].scores) for r in requests] == [
        {"overall": 1.0},
        {"overall": 0.0},
        {"overall": 0.0},
    ]
    wrong = scenes.corrupt(toy.scene(TWO), ["correctness"], random.Random(0))
    found, _ = judges.collect(
        judge, [toy.request(TWO, wrong)], judges.Store(str(tmp_path / "v.sqlite"))
    )
    assert found[f"r{TWO}"].scores["overall"] == 0.5  # 0.6, to the nearest quarter


def test_a_rubric_without_facts_is_refused():
    plain = records.parse(
        {"key": "k", "criteria": [dict(id="a", text="t", kind="essential", weight=1, axis="x")]},
        where="x",
    )
    with pytest.raises(ValueError, match="cannot decide the criterion 'a'"):
        judged(oracle.oracle(), [toy.request(TWO, rubric=plain)])


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (1.5, r"judge 'oracle': .*noise is 1.5; it must be in \[0, 1\]"),
        ("a", r"judge 'oracle': noise is 'a'; it should be a valid number"),
        (True, r"judge 'oracle': noise is True"),
    ],
)
def test_noise_must_be_a_share(noise, message):
    with pytest.raises(ValueError, match=message):
        judges.check({"judge": "oracle", "noise": noise})
