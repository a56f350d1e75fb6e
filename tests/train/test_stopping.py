import pytest

from rubric_jax import config
from rubric_jax.train import loop, stopping
from tests.train import runs

RULE = stopping.Patience("reward", "max", allowed=2, min_delta=0.1, every=5)


def after(*values, rule=RULE):
    for number, value in enumerate(values, 1):
        rule = rule.seen(5 * number, value)
    return rule


def test_a_run_stops_after_so_many_evaluations_without_an_improvement():
    # 0.55 is better than 0.5, but not by more than 0.1; 0.65 is.
    assert [after(*[0.5, 0.55, 0.65, 0.6, 0.7][:n]).stale for n in range(1, 6)] == [0, 1, 0, 1, 2]
    assert not after(0.5, 0.55, 0.65, 0.6).over
    stopped = after(0.5, 0.55, 0.65, 0.6, 0.7)
    assert stopped.over
    assert stopped.why() == (
        "held-out reward has not come more than 0.1 above 0.65 (step 15) in 2 evaluations"
    )


def test_for_a_loss_less_is_better():
    loss = stopping.Patience("loss", "min", allowed=2, min_delta=0.0, every=5)
    assert not after(1.0, 0.9, 0.95, 0.8, rule=loss).over
    assert after(1.0, 1.0, 1.2, rule=loss).over


def test_a_value_that_is_not_a_number_improves_on_nothing():
    nan = float("nan")
    assert after(nan, nan).over
    assert after(nan, nan).why() == "held-out reward was not a number in 2 evaluations"
    assert not after(nan, 0.5, nan).over
    assert after(0.5, nan, nan).over


def test_without_patience_no_run_stops():
    never = stopping.Patience.of(config.Train())
    assert not after(*[0.0] * 50, rule=never).over
    assert never.position() == {}


def test_a_checkpoint_brings_the_count_back():
    seen = after(0.5, 0.55)
    assert RULE.restored(seen.position()) == seen


def test_another_rule_than_the_run_began_with_is_refused():
    other = stopping.Patience("reward", "max", allowed=2, min_delta=0.0, every=5)
    with pytest.raises(ValueError, match=r"began with: min_delta: 0.1 -> 0.0. Set"):
        other.restored(RULE.position())
    with pytest.raises(ValueError, match=r"allowed: None -> 2"):
        RULE.restored({})


def test_patience_needs_the_best_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"patience stops a run after its best checkpoint"):
        loop.train(runs.config(train={"patience": 2}), str(tmp_path))
