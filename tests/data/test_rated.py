"""Rated lists that become pairs."""

import numpy as np
import pytest

from rubric_jax import config, types
from rubric_jax.data import loading, preparing, rated
from tests.data import toy

TEXTS = ("a red circle .", "a blue circle .", "a green square .", "none .")


def row(*ratings, **columns):
    made = toy.row(chosen=None, rejected=None, **columns)
    for k, rating in enumerate(ratings):
        made |= {f"response_{k}": TEXTS[k], f"response_{k}_rewards": {"good": rating}}
    return made


def prepare(folder, processor, rows, **settings):
    settings = {"axes": ("good",), "rated": {"pairs": "best_vs_rest"}, **settings}
    return toy.prepare(toy.write(folder, rows), folder / "cache", processor, **settings)


def pairs(prepared):
    source, index = loading.open(prepared), prepared.index
    texts = [
        tuple(" ".join(toy.WORDS[i] for i in ids) for ids in source[k].responses)
        for k in range(len(source))
    ]
    return list(zip(index["id"].tolist(), texts, index["level"].tolist(), strict=True))


def test_the_best_meets_the_rest_from_the_largest_gap_down(processor, tmp_path):
    made = prepare(tmp_path, processor, [row(0.5, 0.25, 1.0, 0.0, id="q")])
    best = "a green square ."
    assert pairs(made) == [
        ("q/1", (best, "none ."), 1.0),
        ("q/2", (best, "a blue circle ."), 2.0),
        ("q/3", (best, "a red circle ."), 3.0),
    ]
    np.testing.assert_array_equal(made.index["rewards"][:, :, 0], [[1, 0], [1, 0.25], [1, 0.5]])
    assert not made.counts.unread


def test_best_against_worst_is_one_pair(processor, tmp_path):
    made = prepare(tmp_path, processor, [row(0.5, 0.0, 1.0)], rated={"pairs": "best_vs_worst"})
    assert pairs(made) == [("1/1", ("a green square .", "a blue circle ."), 1.0)]


def test_equal_ratings_are_no_preference_and_counted(processor, tmp_path):
    made = prepare(tmp_path, processor, [row(1.0, 1.0, 0.5), row(0.5, 0.5, images=["1.png"])])
    assert [(name, level) for name, _, level in pairs(made)] == [("1/1", 1.0)]
    assert dict(made.counts.dropped) == {"equal ratings": 2}
    assert "rated like the best response" in made.counts.examples["equal ratings"][0]


def test_prompts_alone_are_read_as_they_are(processor, tmp_path):
    path = toy.write(tmp_path, [toy.row(id="q")])
    settings = {"branches": (), "axes": ("good",), "rated": {"pairs": "best_vs_rest"}}
    made = preparing.prepare(
        config.Data(**settings),
        types.PROMPTS,
        processor,
        path=path,
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert made.index["id"].tolist() == ["q"]


def test_weights_say_which_axes_rank():
    record = {
        "response_0": "x",
        "response_0_rewards": {"a": 1.0, "b": 0.0},
        "response_1": "y",
        "response_1_rewards": {"a": 0.0, "b": 0.75},
    }
    for weights, best in (({"a": 1.0}, "x"), ({"a": 0.5, "b": 1.0}, "y")):
        made = rated.bind({"pairs": "best_vs_rest", "weights": weights}, ("a", "b"))
        ((found, tied),) = made.rows(record, "1")
        assert (found["chosen"], tied) == (best, False)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"response_1": None}, r":1: response_0: 1 rated responses in the row"),
        ({"response_1_rewards": None}, r":1: response_1_rewards: is None; .*'good'"),
        ({"response_1_rewards": {"good": "much"}}, r":1: response_1_rewards: .*needs a number"),
    ],
)
def test_a_list_that_cannot_be_ranked_is_named(columns, message, processor, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, processor, [{**row(0.5, 0.0), **columns}])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pairs": "best_rest"}, r"pairs is 'best_rest'; .*Did you mean 'best_vs_rest'"),
        ({"pairs": "best_vs_rest", "weigths": {}}, r"unknown field 'weigths'.*'weights'"),
        ({"pairs": "best_vs_rest", "weights": {"god": 1}}, r"weights.god .*Did you mean 'good'"),
        ({"pairs": "best_vs_rest", "weights": {"good": "1"}}, r"weights.good is '1'"),
    ],
)
def test_a_slip_is_refused_before_any_data(values, message):
    with pytest.raises(ValueError, match=message):
        rated.bind(values, ("good",))
    with pytest.raises(ValueError, match="name their axes"):
        rated.bind({"pairs": "best_vs_rest"}, ())
