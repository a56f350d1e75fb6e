"""Pairs by rubric: each rule worked by hand. total = (3 answer + style) / 4."""

import dataclasses

import numpy as np
import pytest

from rubric_jax import evals
from rubric_jax.recipes import controls, pairing, rubric
from rubric_jax.rubrics import aggregation, records
from tests.recipes import toy

# The totals of the module's docstring: 1, .875, .25, 0.
FOUR = toy.scored((1, 1), (1, 0.5), (0, 1), (0, 0))


def mine(*groups, axes=toy.AXES, recipe=rubric.rubric, **knobs):
    return recipe(groups, axes, seed=0, **knobs)


def test_the_example_of_the_module():
    mined = mine(toy.group(FOUR, name="a"))
    assert toy.samples(mined) == [(0, 3), (1, 2)]
    first, second = mined.rows
    assert first.group == "a"
    assert first.branches == {"chosen": "text 0", "rejected": "text 3"}
    assert first.rewards == {
        "chosen": {"correctness": 1, "style": 1},
        "rejected": {"correctness": 0, "style": 0},
    }
    assert first.total == {"chosen": 1, "rejected": 0}
    assert first.axis == "correctness"  # of two equal gaps, the run's first axis
    assert (first.weight, first.margin) == (1, 0)
    assert second.rewards == {
        "chosen": {"correctness": 1, "style": 0.5},
        "rejected": {"correctness": 0, "style": 1},
    }
    assert second.axis == "correctness"
    assert mined.summary() == ["2 rows from 1 of 1 groups"]


def test_of_equal_axis_gaps_the_first_in_the_runs_order_counts():
    assert mine(toy.group(FOUR, axes=("style", "correctness")), axes=("style", "correctness")).rows[
        0
    ].axis == ("style")


def test_the_axis_is_that_of_the_largest_gap():
    mined = mine(toy.group(toy.scored((1, 1), (1, 0))))
    assert [(row.axis, row.total["rejected"]) for row in mined.rows] == [("style", 0.75)]


def test_a_failed_essential_is_never_chosen():
    mined = mine(toy.group(toy.scored((0, 1), (0, 0))))
    assert mined.skipped == {"no response qualifies as chosen": 1}
    mined = mine(toy.group(toy.scored((0.5, 0), (0, 1), (0, 0))), pairs=9, reuse=9)
    assert toy.samples(mined) == [(0, 2)]  # .375 over 0; .25 is too near, and never chosen


def test_qualification_can_be_switched_off():
    mined = mine(toy.group(toy.scored((0, 1), (0, 0))), unfailed=False)
    assert toy.samples(mined) == [(0, 1)]


def test_tau_asks_for_more_of_the_essentials():
    group = toy.group(toy.scored((0.5, 1), (0, 0)))
    assert toy.samples(mine(group)) == [(0, 1)]
    assert toy.samples(mine(group, tau=0.5)) == [(0, 1)]
    assert mine(group, tau=0.75).skipped == {"no response qualifies as chosen": 1}


def test_what_all_respond_equally_gives_nothing():
    assert mine(toy.group(toy.scored((1, 0), (1, 0)))).skipped == {pairing.EQUAL: 1}
    assert mine(toy.group(toy.scored((1, 1), (1, 1)))).skipped == {"all responses reach high": 1}
    nearly = toy.group(toy.scored((1, 1), (1, 0)))  # 1 and .75
    assert mine(nearly, high=0.75).skipped == {"all responses reach high": 1}
    assert len(mine(nearly).rows) == 1


def test_the_margin_is_the_least_gap():
    group = toy.group(toy.scored((1, 1), (1, 0.5)))  # 1 and .875
    assert mine(group).skipped == {"no gap reaches the margin": 1}
    assert toy.samples(mine(group, margin=0.125)) == [(0, 1)]
    assert toy.samples(mine(group, margin=0.0)) == [(0, 1)]


def test_a_gap_that_rounding_left_below_the_margin_reaches_it():
    group = toy.group(toy.scored((0.9, 0.9), (0.7, 0.7)))
    assert float(group.total[0]) - float(group.total[1]) != 0.2
    assert len(mine(group, margin=0.2).rows) == 1


def test_margin_scale_puts_the_gap_into_the_label():
    assert [row.margin for row in mine(toy.group(FOUR), margin_scale=2.0).rows] == [2.0, 1.25]


def test_reuse_lets_a_response_stand_in_more_pairs():
    group = toy.group(FOUR)
    assert toy.samples(mine(group, pairs=9)) == [(0, 3), (1, 2)]
    twice = toy.samples(mine(group, pairs=9, reuse=2))
    assert twice == [(0, 3), (1, 3), (0, 2), (1, 2)]  # gaps 1, .875, .75, .625
    assert toy.samples(mine(group, pairs=1)) == [(0, 3)]


def test_a_response_with_an_image_placeholder_is_left_out_and_counted():
    group = toy.group(
        [
            toy.response("see <image> here", (1, 1)),
            toy.response("good", (1, 0)),
            toy.response("bad", (0, 0)),
        ]
    )
    mined = mine(group)
    assert toy.samples(mined) == [(1, 2)]
    assert mined.left_out == {pairing.PLACEHOLDER: 1}


def test_a_reference_with_an_image_placeholder_makes_no_row():
    responses = toy.scored((1, 0), (0, 0))
    groups = [
        toy.group(responses, reference="as in <image> .", name="a"),
        toy.group(responses, reference="two .", name="b"),
    ]
    mined = mine(*groups, recipe=controls.reference_pairs)
    assert [row.group for row in mined.rows] == ["b"]
    assert mined.reasons == {"a": pairing.PLACEHOLDER}
    assert mined.left_out == {pairing.PLACEHOLDER: 1}


def test_labels_outside_0_and_1_are_refused_and_rounding_is_not():
    penalty = records.parse(
        {
            "key": "k",
            "criteria": [
                {"id": "answer", "text": "t", "kind": "essential", "weight": 1, "axis": "x"},
                {"id": "style", "text": "t", "kind": "additional", "weight": 2, "axis": "x"}
                | {"penalty": True},
            ],
        },
        where="toy",
    )
    made = {"rubric": penalty, "axes": ("x",), "aggregate": aggregation.signed_points}
    # Points earned over positive points: (1 - 0) / 1, (1 - 2) / 1.
    group = toy.group(toy.scored((1, 0), (1, 1)), **made)
    with pytest.raises(
        ValueError, match=r"'g': response 1 has the reward -1 on the axis 'x'.*sign"
    ):
        mine(group, axes=("x",))
    found = evals.measure(["rewards"], [group], ("x",))  # where they may be anything
    assert found["reward/x"][0] == 0.0
    group = dataclasses.replace(group, axes=np.array([[1 + 2e-7], [-2e-7]]))
    (row,) = mine(group, axes=("x",)).rows
    assert row.rewards == {"chosen": {"x": 1.0}, "rejected": {"x": 0.0}}


def test_cut_and_unjudged_and_empty_and_repeated_responses_are_left_out_and_counted():
    group = toy.group(
        [
            toy.response("right", (1, 1)),
            toy.response("cut", (0, 0), finished=False),
            toy.response("no verdict"),
            toy.response("half a verdict", (0, None)),
            toy.response("  ", (0, 0)),
            toy.response("right ", (1, 1)),
            toy.response("of another policy", (0, 0), policy="other"),
            toy.response("wrong", (0, 1)),
        ]
    )
    mined = mine(group, pairs=9, reuse=9)
    assert toy.samples(mined) == [(0, 7)]
    assert mined.left_out == {
        pairing.CUT_OFF: 1,
        pairing.UNJUDGED: 2,
        "empty response": 1,
        "response with the text of another": 1,
    }
    assert toy.samples(mine(group, pairs=9, reuse=9, finished=False)) == [(0, 1), (0, 7)]


def test_fewer_than_two_usable_responses_are_no_pair():
    assert mine(toy.group([toy.response("a", (1, 1)), toy.response("b")])).skipped == {
        pairing.FEW: 1
    }
    few = toy.group([])
    assert mine(few, toy.group(FOUR, name="b")).skipped == {pairing.FEW: 1}


def test_texts_too_alike_give_way_to_the_next_pair():
    group = toy.group(
        [
            toy.response("a red cup", (1, 1)),
            toy.response("a blue cup", (0, 0)),
            toy.response("the blue cup", (0, 1)),
        ]
    )
    assert toy.samples(mine(group)) == [(0, 1)]
    mined = mine(group, distance=2)
    assert toy.samples(mined) == [(0, 2)]
    assert mined.left_out == {"texts too alike": 1}
    assert mine(group, distance=3).skipped == {"texts too alike": 1}


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("a b c", "a b c", 0),
        ("a b c", "a x c", 1),
        ("a b c", "a c", 1),
        ("a b c", "b c d", 2),
        ("a b", "c d e", 3),
        ("", "a b", 2),
        ("k i t t e n", "s i t t i n g", 3),
    ],
)
def test_word_distance_by_hand(a, b, distance):
    for least in range(5):
        assert pairing.apart(a, b, least) == (distance >= least)
        assert pairing.apart(b, a, least) == (distance >= least)


def test_a_pair_that_no_axis_favours_is_left_out():
    # What an aggregation may do whose total is no mean of its axes.
    group = dataclasses.replace(toy.group(FOUR), axes=np.full((4, 2), 0.5, np.float32))
    mined = mine(group)
    assert mined.skipped == {pairing.NO_AXIS: 1}
    assert mined.left_out == {pairing.NO_AXIS: 4}


def wide(name, gap, source=""):
    return toy.group(toy.scored((1, gap), (1, 0)), name=name, source=source)  # gap / 4


def test_cap_keeps_the_largest_gaps_of_each_source():
    groups = [wide("a", 0.8, "x"), wide("b", 1, "x"), wide("c", 0.7, "y"), wide("d", 0.9, "x")]
    mined = mine(*groups, cap=1)
    assert [row.group for row in mined.rows] == ["b", "c"]
    assert mined.skipped == {"over the cap of its source": 2}


def test_keep_and_budget_keep_the_largest_gaps_of_all():
    groups = [wide("a", 0.8), wide("b", 1), wide("c", 0.7), wide("d", 0.9)]
    assert [row.group for row in mine(*groups, keep=0.5).rows] == ["b", "d"]
    assert [row.group for row in mine(*groups, keep=0.51).rows] == ["a", "b", "d"]
    mined = mine(*groups, budget=1)
    assert [row.group for row in mined.rows] == ["b"]
    assert mined.skipped == {"over the budget": 3}
    assert len(mine(*groups, budget=9).rows) == 4


def test_a_group_that_keeps_a_row_is_not_skipped():
    mined = mine(toy.group(FOUR), budget=1)
    assert toy.samples(mined) == [(0, 3)]
    assert mined.left_out == {"over the budget": 1}
    assert not mined.skipped


def test_of_equal_gaps_the_seed_decides_and_not_the_order_of_the_file():
    groups = [wide(f"g{i}", 1) for i in range(20)]
    kept = {
        seed: {row.group for row in rubric.rubric(groups, toy.AXES, seed=seed, budget=5).rows}
        for seed in range(3)
    }
    assert kept[0] != kept[1]
    again = rubric.rubric(groups[::-1], toy.AXES, seed=0, budget=5)
    assert {row.group for row in again.rows} == kept[0]
    many = toy.group(toy.scored(*[(1, 1)] * 5, *[(0, 0)] * 5))
    drawn = {toy.samples(rubric.rubric([many], toy.AXES, seed=s, pairs=1))[0] for s in range(9)}
    assert len(drawn) > 3


def test_two_groups_of_one_id_are_an_error():
    with pytest.raises(ValueError, match="Two groups have the id 'g'"):
        mine(toy.group(FOUR), toy.group(FOUR))


def test_summary_says_why():
    mined = mine(toy.group(FOUR), toy.group(toy.scored((1, 0), (1, 0)), name="b"), budget=1)
    assert mined.summary() == [
        "1 rows from 1 of 2 groups",
        "  no row: 1 x all responses equal",
        "  left out: 1 x over the budget",
    ]


OTHERS = [
    toy.response("own good", (1, 1)),
    toy.response("own bad", (0, 0)),
    toy.response("theirs good", (1, 1), policy="other"),
    toy.response("theirs bad", (0, 0), policy="other"),
    toy.response("continued", (0, 0), policy="continued"),
]


@pytest.mark.parametrize(("rejected", "pairs"), [("other", [(2, 3)]), ("own", [(2, 1)])])
def test_cross_model_chooses_among_the_others(rejected, pairs):
    mined = mine(toy.group(OTHERS), recipe=rubric.cross_model, rejected=rejected, pairs=9, reuse=9)
    assert toy.samples(mined) == pairs


def test_cross_model_without_others_is_counted():
    mined = mine(toy.group([*OTHERS[:2], OTHERS[4]]), recipe=rubric.cross_model)
    assert mined.skipped == {"no response of another policy": 1}


def test_nothing_is_compared_with_nan():
    group = toy.group([*FOUR, toy.response("unjudged")])
    assert np.isnan(group.total[4])
    assert toy.samples(mine(group)) == [(0, 3), (1, 2)]
