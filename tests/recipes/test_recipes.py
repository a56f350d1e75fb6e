"""What holds for every recipe of the table, and how a config names one."""

import inspect
import json
import math
import pathlib
import random
import re

import pytest

from rubric_jax import config, recipes
from rubric_jax.data import scenes
from rubric_jax.data.scenes import language
from rubric_jax.recipes import groups as groups_lib
from tests.recipes import toy

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "recipes.md").read_text()


def sampled(i):
    """Twelve responses to a picture, of all policies and of all sorts."""
    instance = scenes.instance(0, i)
    rng = random.Random(i)
    reference = scenes.reference(instance)
    made = []
    for k in range(12):
        axes = [axis for axis in scenes.AXES if rng.random() < 0.3]
        text = scenes.corrupt(instance, axes, rng) if axes else reference
        if k == 10:
            text = "" if i % 3 else "yes"
        policy = "other" if k in (6, 7) else ""
        if k == 11:  # one that goes on from what will be chosen
            text, policy = "", groups_lib.CONTINUED
        score = scenes.score(instance, text)
        scores = {"answer": score["correctness"], "style": score["format"]}
        if k == 9:
            scores = {} if i % 2 else None
        made.append(
            groups_lib.Response(text, finished=k != 5 and i != 8, policy=policy, scores=scores)
        )
    return instance, reference, made


def items():
    made = []
    for i in range(40):
        instance, reference, responses = sampled(i)
        if i % 7 == 0:
            responses = responses[:1]
        if i % 11 == 0:
            responses = [responses[0], *responses[:1]]
        fields = {
            "answer": "" if i % 13 == 0 else instance.answer,
            "reference": "" if i % 17 == 0 else reference,
            "source": f"s{i % 2}",
        }
        made.append(toy.item(responses, name=f"g{i}", **fields))
    return made


def of(name, made, axes):
    """The groups that a recipe reads: with one mark, or with continuations, where it wants them."""
    if name == "holistic":
        axes = ("overall",)
        made = [
            m
            | {
                "rubric": toy.HOLISTIC,
                "responses": tuple(
                    toy.response(
                        r.text, None if not r.scores else (r.scores["answer"],), finished=r.finished
                    )
                    for r in m["responses"]
                ),
            }
            for m in made
        ]
    groups = groups_lib.build(made, axes)
    more = recipes.prompts({"recipe": name})
    if more:
        ends = {start.group: f"{start.first} and so on ." for start in more(groups)}
        continued = groups_lib.CONTINUED
        made = [
            m
            | {
                "responses": (
                    *(r for r in m["responses"] if r.policy != continued),
                    groups_lib.Response(ends.get(m["id"], ""), policy=continued),
                )
            }
            for m in made
        ]
        groups = groups_lib.build(made, axes)
    return groups, axes


@pytest.fixture(scope="module", params=recipes.RECIPES)
def case(request):
    groups, axes = of(request.param, items(), toy.AXES)
    return request.param, groups, axes


def run(name, groups, axes, *, seed=0, **knobs):
    return recipes.build({"recipe": name, **knobs})(groups, axes, seed=seed)


def test_every_group_has_rows_or_one_reason(case):
    name, groups, axes = case
    for knobs in ({}, {"budget": 5}):
        mined = run(name, groups, axes, **knobs)
        assert mined.groups == len(groups)
        with_rows = {row.group for row in mined.rows}
        assert len(with_rows) + mined.skipped.total() == len(groups)
        assert with_rows  # the toy data have something for everyone
        assert with_rows < {group.id for group in groups}
        assert all(count > 0 for count in (mined.skipped | mined.left_out).values())
        assert mined.summary()[0].startswith(f"{len(mined.rows)} rows from {len(with_rows)} of")
    assert len(mined.rows) == 5


def test_rows_are_well_formed(case):
    name, groups, axes = case
    by_id = {group.id: group for group in groups}
    names = recipes.layout({"recipe": name}, 9)
    for row in run(name, groups, axes).rows:
        assert tuple(row.branches) == tuple(row.rewards) == names
        texts = [" ".join(text.split()) for text in row.branches.values()]
        assert all(texts)
        assert len(set(texts)) == len(texts)
        rewards = [value for rewards in row.rewards.values() for value in rewards.values()]
        numbers = [*rewards, *row.total.values(), row.weight, row.margin]
        assert all(type(number) is float and math.isfinite(number) for number in numbers)
        assert all(0 <= value <= 1 for value in rewards)
        assert all(axis in axes for rewards in row.rewards.values() for axis in rewards)
        assert row.weight == 1
        if row.axis is not None:
            assert row.rewards["chosen"][row.axis] > row.rewards["rejected"][row.axis]
        for branch, k in row.sample.items():
            response = by_id[row.group].responses[k]
            assert response.text == row.branches[branch]
        json.dumps(row._asdict())


def test_rows_come_in_the_order_of_the_groups(case):
    name, groups, axes = case
    places = {group.id: i for i, group in enumerate(groups)}
    order = [places[row.group] for row in run(name, groups, axes).rows]
    assert order == sorted(order)


def test_the_same_input_gives_the_same_rows(case):
    name, groups, axes = case
    first, second = (run(name, groups, axes) for _ in range(2))
    assert (first.rows, first.skipped, first.left_out) == (
        second.rows,
        second.skipped,
        second.left_out,
    )


def test_a_groups_rows_do_not_depend_on_other_groups(case):
    name, groups, axes = case
    rows = run(name, groups, axes).rows
    assert sorted(run(name, groups[::-1], axes).rows, key=str) == sorted(rows, key=str)
    half = groups[::2]
    ids = {group.id for group in half}
    assert run(name, half, axes).rows == [row for row in rows if row.group in ids]


def test_no_groups_give_no_rows(case):
    name, _, axes = case
    mined = run(name, [], axes)
    assert (mined.rows, mined.groups) == ([], 0)
    assert mined.summary() == ["0 rows from 0 of 0 groups"]


def test_a_draw_over_all_rows_is_nested_and_ordered(case):
    name, groups, axes = case
    all_rows = run(name, groups, axes).rows
    three = run(name, groups, axes, budget=3).rows
    five = run(name, groups, axes, budget=5).rows
    assert [row for row in five if row in three] == three
    assert [row for row in all_rows if row in five] == five


def test_the_page_names_the_recipe_its_knobs_and_its_reasons(case):
    name, groups, axes = case
    assert f"`{name}`" in PAGE
    for knob in recipes_knobs(name):
        assert f"`{knob}`" in PAGE, knob
    mined = run(name, groups, axes, budget=5)
    for reason in mined.skipped | mined.left_out:
        assert reason in PAGE, reason


def test_the_page_names_every_reason_in_the_code():
    folder = pathlib.Path(recipes.__file__).parent
    code = "\n".join(file.read_text() for file in folder.glob("*.py"))
    where = r"(?:return | or |refuse\(|reason, row = |left_out\[|kept, |\], |^_?[A-Z_]+ = )"
    found = re.findall(where + r'"([a-z][^"]+ [^"]+)"', code, re.MULTILINE)
    assert len(found) > 30
    for reason in found:
        assert reason in PAGE, reason


def recipes_knobs(name):
    return [
        key
        for key, p in inspect.signature(recipes.RECIPES[name]).parameters.items()
        if p.kind is p.KEYWORD_ONLY and key != "seed"
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "Unknown recipe ''"),
        ({"recipe": "rubirc"}, "Did you mean 'rubric'"),
        ({"recipe": "rubric", "marign": 0.1}, "Did you mean 'margin'"),
        ({"recipe": "rubric", "margin": 1.5}, "'rubric': margin is 1.5; it should be less than"),
        ({"recipe": "rubric", "margin": "0.1"}, "margin is '0.1'; it should be a valid number"),
        ({"recipe": "rubric", "margin": True}, "margin is True; it should be a valid number"),
        ({"recipe": "rubric", "margin_scale": math.nan}, "margin_scale is nan"),
        ({"recipe": "rubric", "keep": 0}, "keep is 0; it should be greater than 0"),
        ({"recipe": "rubric", "pairs": 0}, "pairs is 0; it should be greater than or equal to 1"),
        ({"recipe": "rubric", "finished": 1}, "finished is 1; it should be a valid boolean"),
        ({"recipe": "rubric", "seed": 1}, "seed is no knob"),
        ({"recipe": "cross_model", "rejected": "othr"}, "Did you mean 'other'"),
        ({"recipe": "outcome", "pattern": "(a"}, "not a regular expression"),
        ({"recipe": "outcome", "pattern": "a"}, "exactly one around the answer"),
        ({"recipe": "perturbation", "slots": [["a"]]}, "two or more different words"),
        ({"recipe": "perturbation", "slots": [["a", "A"]]}, "two or more different words"),
        ({"recipe": "perturbation", "slots": []}, "no list of words"),
    ],
)
def test_a_wrong_config_is_refused_before_anything_runs(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        recipes.build(spec)


def test_lists_of_a_config_become_tuples():
    recipe = recipes.build({"recipe": "perturbation", "slots": [["cup", "mug"]]})
    mined = recipe([toy.group([], reference="a cup")], toy.AXES, seed=0)
    assert toy.texts(mined) == [("a cup", "a mug")]


def test_the_slots_for_scenes_stay_within_their_language():
    code = next(c for c in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "world" in c)
    names = {"config": config.default()}
    exec(code, names)
    recipe = recipes.build(config.build(names["config"]).pair.recipe)
    words = set(" ".join(language.phrases()).split())
    groups = [
        toy.group([], name=str(i), reference=scenes.reference(scenes.instance(0, i)))
        for i in range(50)
    ]
    rows = recipe(groups, toy.AXES, seed=0).rows
    assert len(rows) == 50
    assert all(set(row.branches["rejected"].split()) <= words for row in rows)


def test_layout_names_the_branches():
    assert recipes.layout({"recipe": "rubric"}, 32) == ("chosen", "rejected")
    three = ("response_0", "response_1", "response_2")
    assert recipes.layout({"recipe": "listwise", "count": 3}, 32) == three
    assert recipes.layout({"recipe": "listwise", "count": 0}, 3) == three
    with pytest.raises(ValueError, match="and 2 are sampled"):
        recipes.layout({"recipe": "listwise"}, 2)


def test_the_tables_name_recipes_only():
    assert {*recipes.RUBRIC_OF, *recipes.PROMPTS} <= set(recipes.RECIPES)


def test_counters_are_of_reasons():
    mined = groups_lib.Mined(groups=1, reasons={"g": "a"})
    assert mined.summary() == ["0 rows from 0 of 1 groups", "  no row: 1 x a"]
