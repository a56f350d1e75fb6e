"""One mark, random pairs, exchanged rubrics, lists."""

import pytest

from rubric_jax.recipes import controls, holistic, lists, pairing
from tests.recipes import toy


def mine(recipe, *groups, axes=toy.AXES, seed=0, **knobs):
    return recipe(groups, axes, seed=seed, **knobs)


def marked(*marks, name="g"):
    responses = toy.scored(*[(mark,) for mark in marks])
    return toy.group(responses, axes=("overall",), rubric=toy.HOLISTIC, name=name)


def test_holistic_pairs_best_with_worst():
    group = marked(0.5, 1, 0.25, 0.75)
    mined = mine(holistic.holistic, group, axes=("overall",), margin_scale=2)
    assert toy.samples(mined) == [(1, 2)]
    (row,) = mined.rows
    assert (row.axis, row.margin) == ("overall", 1.5)
    assert row.rewards == {"chosen": {"overall": 1}, "rejected": {"overall": 0.25}}
    more = mine(holistic.holistic, group, axes=("overall",), pairs=9)
    assert toy.samples(more) == [(1, 2), (3, 0)]
    wide = mine(holistic.holistic, group, axes=("overall",), pairs=9, margin=0.5)
    assert toy.samples(wide) == [(1, 2)]


@pytest.mark.parametrize(
    ("marks", "reason"),
    [
        ((0.5,), pairing.FEW),
        ((0.5, 0.5), pairing.EQUAL),
        ((0.5, 0.25), "no gap reaches the margin"),
    ],
)
def test_holistic_counts_groups_without_a_pair(marks, reason):
    mined = mine(holistic.holistic, marked(*marks), axes=("overall",), margin=0.5)
    assert mined.skipped == {reason: 1}


def test_holistic_refuses_the_verdicts_of_a_rubric_and_says_what_to_set():
    with pytest.raises(ValueError, match=r"'g' was judged by 2 criteria .*oracle_holistic"):
        mine(holistic.holistic, toy.group(toy.scored((1, 1), (0, 0))))


def test_random_pairs_are_ordered_by_score_and_disjoint():
    group = toy.group(toy.scored(*[(k / 8, k / 8) for k in range(8)]))
    drawn = set()
    for seed in range(20):
        pairs = toy.samples(mine(controls.random, group, seed=seed, pairs=3))
        assert len(pairs) == 3
        assert all(chosen > rejected for chosen, rejected in pairs)
        assert len({k for pair in pairs for k in pair}) == 6
        drawn |= set(pairs)
    assert len(drawn) > 15  # of 28


def test_random_leaves_out_equal_scores():
    mined = mine(controls.random, toy.group(toy.scored((1, 1), (1, 1))))
    assert mined.skipped == {pairing.EQUAL: 1}
    group = toy.group(toy.scored((1, 1), (1, 1), (0, 0)))
    found = [mine(controls.random, group, seed=seed) for seed in range(20)]
    equal = [mined for mined in found if not mined.rows]
    assert 0 < len(equal) < 20
    assert equal[0].skipped == equal[0].left_out == {"drawn pair with equal scores": 1}


def test_rubrics_are_exchanged_without_a_fixed_point_whatever_the_order():
    ids = [f"i{k}" for k in range(50)]
    for seed in range(10):
        of = controls.assign(ids, seed=seed)
        assert sorted(of) == sorted(of.values()) == sorted(ids)
        assert all(of[name] != name for name in ids)
        assert controls.assign(ids[::-1], seed=seed) == of
    assert controls.assign(ids, seed=0) != controls.assign(ids, seed=1)
    assert controls.assign(["a", "b"], seed=0) == {"a": "b", "b": "a"}


@pytest.mark.parametrize(("ids", "message"), [(["a"], "two or more"), (["a", "a"], "occurs twice")])
def test_rubrics_that_cannot_be_exchanged_are_an_error(ids, message):
    with pytest.raises(ValueError, match=message):
        controls.assign(ids, seed=0)


def test_a_list_holds_the_first_responses_as_sampled():
    group = toy.group(toy.scored((0, 0), (1, 1), None, (0, 1), (1, 0)))
    (row,) = mine(lists.listwise, group, count=3).rows
    assert row.branches == {"response_0": "text 0", "response_1": "text 1", "response_2": "text 3"}
    assert row.sample == {"response_0": 0, "response_1": 1, "response_2": 3}
    assert row.total == {"response_0": 0, "response_1": 1, "response_2": 0.25}
    assert row.rewards["response_2"] == {"correctness": 0, "style": 1}
    assert row.axis is None


def test_short_and_equal_lists_are_counted():
    short = toy.group(toy.scored((1, 1), (0, 0)), name="a")
    equal = toy.group(toy.scored((1, 1), (1, 1), (1, 1), (0, 0)), name="b")
    mined = mine(lists.listwise, short, equal, count=3)
    assert mined.skipped == {"fewer usable responses than the list is long": 1, pairing.EQUAL: 1}


def test_a_count_of_0_is_the_most_that_a_group_has():
    groups = [
        toy.group(toy.scored((1, 1), (0, 0)), name="a"),
        toy.group(toy.scored((1, 1), (0, 0), (0, 1)), name="b"),
    ]
    for order in (groups, groups[::-1]):
        assert [row.group for row in mine(lists.listwise, *order, count=0).rows] == ["b"]


def test_repeats_keep_what_was_sampled():
    twice = [toy.response("a", (1, 1)), toy.response("a", (1, 1)), toy.response("b", (0, 0))]
    group = toy.group(twice)
    assert not mine(lists.listwise, group, count=3).rows
    (row,) = mine(lists.listwise, group, count=3, repeats=True).rows
    assert list(row.branches.values()) == ["a", "a", "b"]


def test_a_list_of_one_is_an_error():
    with pytest.raises(ValueError, match="compares nothing"):
        mine(lists.listwise, toy.group(toy.scored((1, 1))), count=1)
