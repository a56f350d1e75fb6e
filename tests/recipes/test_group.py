"""The recipe `group`: every sample under its own number, for policy gradients."""

import numpy as np
import pytest

from rubric_jax import recipes
from rubric_jax.recipes import groups as groups_lib
from rubric_jax.recipes import lists
from tests.recipes import toy


def run(*groups, axes=toy.AXES, **knobs):
    return recipes.build({"recipe": "group", **knobs})(list(groups), axes, seed=0)


def test_empty_and_equal_responses_stay_and_those_without_a_verdict_do_not():
    texts = [("a", (1, 1)), ("", (0, 0)), ("a", (1, 1)), ("b", None)]
    mined = run(toy.group([toy.response(text, scores) for text, scores in texts]))
    (row,) = mined.rows
    assert row.sample == {"response_0": 0, "response_1": 1, "response_2": 2}
    assert row.rewards["response_1"] == {"correctness": 0.0, "style": 0.0}
    assert mined.left_out == {"response without a complete verdict": 1}


def test_a_group_of_equal_totals_has_a_row_and_one_of_one_response_has_none():
    equal, lone = toy.scored((1, 1), (1, 1)), toy.scored((1, 1), None)
    mined = run(toy.group(equal), toy.group(lone, name="lone"))
    assert [row.group for row in mined.rows] == ["g"]
    assert mined.reasons == {"lone": "fewer than two usable responses"}


def test_responses_that_were_cut_off_are_left_out_on_demand():
    responses = toy.scored((1, 1), (0, 0)) + toy.scored((0, 1), finished=False)
    assert len(run(toy.group(responses)).rows[0].sample) == 3
    assert len(run(toy.group(responses), finished=True).rows[0].sample) == 2


def test_without_verdicts_there_are_samples_and_no_rewards():
    item = toy.item([toy.response("a"), toy.response("b")], rubric=None)
    (row,) = run(groups_lib.unjudged(item, 2), judged=False).rows
    assert row.sample == {"response_0": 0, "response_1": 1}
    assert row.rewards == {"response_0": {}, "response_1": {}}
    assert not recipes.judged({"recipe": "group", "judged": False})
    assert recipes.judged({"recipe": "rubric"})


def test_length_is_penalised_against_the_right_responses_of_the_group():
    tokens, scores = (10, 20, 18, 40), ((1, 1), (1, 0), (0, 0), (0, 1))
    responses = [toy.response(f"r{k}", s, tokens=n) for k, (n, s) in enumerate(zip(tokens, scores))]
    group = toy.group(responses, axes=(*toy.AXES, "length"))
    found = lists.length_rewards(group, [0, 1, 2, 3], cap=0.5, tolerance=0.1)
    # The right ones have 15 tokens: 20 / 15 - 1.1 = 0.2333, 18 / 15 - 1.1 = 0.1, and the cap.
    np.testing.assert_allclose(found, [1.0, 1 - 7 / 30, 0.9, 0.5])
    (row,) = run(group, axes=(*toy.AXES, "length"), length="length", cap=0.5, tolerance=0.1).rows
    assert [row.rewards[f"response_{k}"]["length"] for k in range(4)] == found.tolist()
    assert row.rewards["response_0"]["correctness"] == 1.0
    assert recipes.axes({"recipe": "group", "length": "length"}) == ("length",)


def test_length_is_of_no_matter_where_no_response_is_right():
    responses = [toy.response(f"r{k}", (0, 1), tokens=10 * k + 1) for k in range(3)]
    found = lists.length_rewards(toy.group(responses), [0, 1, 2], cap=0.5, tolerance=0.0)
    assert found.tolist() == [1, 1, 1]


def test_the_axis_of_length_must_be_the_runs_and_nobody_elses():
    group = toy.group(toy.scored((1, 1), (0, 0)))
    with pytest.raises(ValueError, match=r"length is 'brevity'; config.data.axes must name it"):
        run(group, length="brevity")
    with pytest.raises(ValueError, match="its rubric has criteria on the axis 'style' too"):
        run(group, length="style")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"recipe": "continuation"}, "'continuation' needs more than the samples of one step"),
        ({"recipe": "rubric"}, "set config.pair.recipe.pairs to 1"),
        ({"recipe": "group", "finshed": True}, "Did you mean 'finished'"),
    ],
)
def test_recipes_that_cannot_make_a_step_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        recipes.check_online(spec)
    recipes.check_online({"recipe": "rubric", "pairs": 1})
