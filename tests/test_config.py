import json

import ml_collections
import pytest

from rubric_jax import config


def test_the_defaults_are_a_config():
    assert config.build(config.default()) == config.Config()


def test_a_config_file_sets_fields_groups_and_knobs():
    values = config.default()
    values.model.checkpoint = "DIR"
    values.data.axes = ("correctness", "grounding")
    values.objective = {"dpo": {"weight": 1.0, "beta": 0.1}}
    values.optimizer.knobs = {"b2": 0.95}
    values.optimizer.trainable = ((r"vision/.*", False), (r".*", True))
    values.optimizer.learning_rate = 1
    built = config.build(values)
    assert built.model.checkpoint == "DIR"
    assert built.data.axes == ("correctness", "grounding")
    assert built.objective == {"dpo": {"weight": 1.0, "beta": 0.1}}
    assert built.optimizer.knobs == {"b2": 0.95}
    assert built.optimizer.trainable == ((r"vision/.*", False), (r".*", True))
    assert built.optimizer.learning_rate == 1.0
    assert isinstance(built.optimizer.learning_rate, float)


def test_a_misspelt_field_of_a_config_file_is_refused_when_it_is_built():
    values = config.default()
    values.train.stpes = 10
    with pytest.raises(ValueError, match=r"Unknown field config\.train\.stpes"):
        config.build(values)


def test_a_config_survives_json():
    values = config.default()
    values.data.axes = ("a", "b")
    values.objective = {"modpo": {"weights": [0.5, 0.5]}}
    built = config.build(values)
    again = config.build(json.loads(json.dumps(config.to_dict(built))))
    assert again == built


@pytest.mark.parametrize(
    ("group", "field", "value", "message"),
    [
        ("train", "stpes", 10, r"Unknown field config\.train\.stpes.*Did you mean 'steps'"),
        ("optimiser", None, {}, r"Unknown field config\.optimiser;.*Did you mean 'optimizer'"),
        ("train", None, 3, r"config\.train must be a group of fields, not 3"),
        ("train", "steps", "ten", r"config\.train\.steps is 'ten' \(str\).*of type int"),
        ("train", "steps", 1.5, r"config\.train\.steps is 1\.5"),
        ("train", "steps", True, r"config\.train\.steps is True \(bool\)"),
        ("train", "tensorboard", 1, r"config\.train\.tensorboard is 1 \(int\).*type bool"),
        ("optimizer", "knobs", 3, r"config\.optimizer\.knobs is 3"),
        ("data", "axes", "grounding", r"config\.data\.axes is 'grounding'.*type tuple"),
        ("train", "steps", None, r"config\.train\.steps is None"),
        ("model", "dtype", "bf16", r"config\.model\.dtype is 'bf16'.*float32, bfloat16"),
        ("train", "reference", "cached", r"config\.train\.reference.*Did you mean 'cache'"),
        ("train", "batch_size", 0, r"config\.train\.batch_size is 0; it must be at least 1"),
        ("train", "keep_best", -1, r"config\.train\.keep_best is -1"),
        ("data", "workers", -1, r"config\.data\.workers is -1"),
    ],
)
def test_bad_values_are_refused_by_name(group, field, value, message):
    values = config.to_dict(config.Config())
    if field is None:
        values[group] = value
    else:
        values[group][field] = value
    with pytest.raises(ValueError, match=message):
        config.build(values)


def test_fields_left_out_take_their_defaults():
    assert config.build({"seed": 3}) == config.Config(seed=3)
    assert config.build(ml_collections.ConfigDict({"train": {"steps": 2}})).train.steps == 2


def test_differences_name_the_leaf_and_both_values():
    old = config.to_dict(config.Config(objective={"dpo": {"beta": 0.1}, "nll": {"weight": 1.0}}))
    new = config.to_dict(config.Config(objective={"dpo": {"beta": 0.2}}, seed=1))
    assert config.differences(old, new) == [
        "objective.dpo.beta: 0.1 -> 0.2",
        "objective.nll: {'weight': 1.0} -> (absent)",
        "seed: 0 -> 1",
    ]


def test_lists_and_tuples_with_equal_content_do_not_differ():
    built = config.to_dict(config.Config())
    assert config.differences(json.loads(json.dumps(built)), built) == []
    assert config.differences({"a": [1, (2, 3)]}, {"a": (1, [2, 3])}) == []
    assert config.differences({"a": [1, (2, 3)]}, {"a": (1, [2, 4])}) != []


def test_values_nested_in_a_knob_that_is_a_list_of_groups_survive_json():
    values = {"a": [{"axes": ("x", "y")}]}
    assert config.differences(json.loads(json.dumps(values)), values) == []


def dpo(logps, labels, *, win, lose, beta=0.1):
    return logps, labels, win, lose, beta


TERMS = {"dpo": dpo}


def test_bind_returns_the_function_of_a_name_whose_knobs_fit():
    assert config.bind(TERMS, "dpo", {"win": 0, "lose": 1}, what="objective") is dpo


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("dop", {}, "Unknown objective 'dop'.*Did you mean 'dpo'"),
        ("dpo", {"win": 0, "lose": 1, "bta": 1}, "no knob 'bta'.*Did you mean 'beta'"),
        ("dpo", {"win": 0}, "objective 'dpo' needs the knob"),
        ("dpo", {"logps": 0, "win": 0, "lose": 1}, "no knob 'logps'"),
    ],
)
def test_bind_names_what_does_not_fit(name, knobs, message):
    with pytest.raises(ValueError, match=message):
        config.bind(TERMS, name, knobs, what="objective")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.learning_rate", float("nan"), "learning_rate is nan; it must be finite"),
        ("train.refresh_mixup", 0.0, "refresh_mixup is 0; it must be above 0"),
        ("train.refresh_mixup", 1.5, "refresh_mixup is 1.5; it must be at most 1"),
        ("train.epochs", 0.0, "train.epochs is 0.0; it must be above 0"),
        ("data.axes", ("a", "a"), "its names must differ"),
        ("data.branches", ("chosen", 1), "must be a tuple of names"),
        ("optimizer.trainable", ("vision/.*", False), "must be a tuple of"),
        ("optimizer.scale", ((".*",),), "must be a tuple of"),
    ],
)
def test_values_that_would_fail_later_are_refused_at_once(key, value, message):
    values = config.to_dict(config.Config())
    group, field = key.split(".")
    values[group][field] = value
    with pytest.raises(ValueError, match=message):
        config.build(values)
