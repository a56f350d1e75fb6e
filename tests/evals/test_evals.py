import numpy as np
import pytest

from rubric_jax import evals
from tests.recipes import toy


def test_rewards_are_means_over_the_responses_that_were_judged():
    group = toy.group([*toy.scored((1, 0), (0, 1), (1, 1)), toy.response("no verdict")])
    other = toy.group([toy.response("no verdict")])
    found = evals.measure(["rewards"], [group, other], toy.AXES)
    # Totals (3 answer + style) / 4: 0.75, 0.25 and 1.
    np.testing.assert_allclose(found["reward"], [2 / 3, np.nan], rtol=1e-6)
    np.testing.assert_allclose(found["reward/correctness"], [2 / 3, np.nan], rtol=1e-6)
    np.testing.assert_allclose(found["all essentials"], [2 / 3, np.nan], rtol=1e-6)
    np.testing.assert_allclose(found["judged"], [3 / 4, 0])


def test_an_axis_that_the_rubric_does_not_name_has_no_reward():
    axes = (*toy.AXES, "grounding")
    found = evals.measure(["rewards"], [toy.group(toy.scored((1, 1)), axes=axes)], axes)
    assert np.isnan(found["reward/grounding"][0])
    assert found["reward/style"][0] == 1


def test_answers_are_compared_after_normalising():
    texts = ["So the answer is Two.", "answer: 3", "no idea"]
    group = toy.group([toy.response(t) for t in texts], answer="two")
    unknown = toy.group([toy.response(texts[0])])
    found = evals.measure(["answers"], [group, unknown], toy.AXES)
    np.testing.assert_allclose(found["right answer"], [1 / 3, np.nan])
    np.testing.assert_allclose(found["answer found"], [2 / 3, 1])
    found = evals.measure(["answers"], [group], toy.AXES, pattern=r"no (\w+)")
    np.testing.assert_allclose(found["answer found"], [1 / 3])


def test_lengths_show_drift():
    group = toy.group(
        [toy.response("a b c", tokens=5), toy.response("d", tokens=2, finished=False)]
    )
    found = evals.measure(["lengths"], [group], toy.AXES)
    assert found["response tokens"][0] == 3.5
    assert found["response words"][0] == 2
    assert found["finished"][0] == 0.5


def test_implicit_rewards_order_pairs_by_the_change_against_the_reference():
    policy = np.array([[-1.0, -3.0], [-5.0, -2.0], [-1.0, -1.0]])
    reference = np.array([[-2.0, -2.0], [-5.0, -1.0], [-1.0, -1.0]])
    found = evals.implicit(policy, reference)
    # Margins: (1) - (-1) = 2;  0 - (-1) = 1;  0.
    np.testing.assert_allclose(found["pair margin"], [2, 1, 0])
    np.testing.assert_allclose(found["pair accuracy"], [1, 1, 0.5])


def test_an_interval_of_a_coin_is_that_of_the_binomial():
    values = np.repeat([0.0, 1.0], 200)
    found = evals.interval(values, resamples=4000)
    assert found.mean == 0.5
    assert found.n == 400
    half = 1.96 * 0.5 / np.sqrt(400)
    assert found.low == pytest.approx(0.5 - half, abs=0.006)
    assert found.high == pytest.approx(0.5 + half, abs=0.006)


def test_an_interval_leaves_out_what_is_unknown():
    assert evals.interval(np.array([np.nan, 2.0, 2.0])) == (2.0, 2.0, 2.0, 2)
    empty = evals.interval(np.array([np.nan]))
    assert empty.n == 0
    assert np.isnan(empty.mean)


def test_equal_input_gives_equal_intervals_however_it_is_drawn(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    whole = evals.interval(values, resamples=100)
    monkeypatch.setattr(evals.bootstrap, "_CHUNK", 500)
    assert evals.interval(values, resamples=100) == whole


@pytest.mark.parametrize("name", evals.EVALS)
def test_every_evaluation_gives_one_number_per_group(name):
    groups = [toy.group(toy.scored((1, 0), (0, 0))), toy.group([toy.response("x")])]
    for values in evals.measure([name], groups, toy.AXES).values():
        assert values.shape == (2,)
    assert all(v.shape == (0,) for v in evals.measure([name], [], toy.AXES).values())


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", r"pattern is '\('.* regular expression"),
        ("answer", r"pattern is 'answer'.* group"),
        ("(a)|(b)", r"pattern is '\(a\)\|\(b\)'.* group"),
    ],
)
def test_a_pattern_that_finds_no_answer_is_refused_before_anything_is_measured(pattern, message):
    evals.check(["answers"])
    evals.check(["answers"], r"is (\w+)")
    with pytest.raises(ValueError, match=message):
        evals.check(["answers"], pattern)


def test_an_unknown_evaluation_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"Unknown evaluation 'reward'.*Did you mean 'rewards'"):
        evals.check(["reward"])
