"""What a run remembers of earlier steps goes on from a checkpoint as if nothing had happened."""

import pytest

from tests.train import runs

LEFT = 143  # 128 + SIGTERM


def config():
    """A reference that moves."""
    return runs.config(
        train={
            "steps": 6,
            "checkpoint_every": 2,
            "log_every": 1,
            "reference": "step",
            "refresh": 3,
            "refresh_mixup": 0.5,
        },
        objective={"dpo": runs.PAIR},
    )


@pytest.mark.slow
def test_a_run_that_left_and_went_on_ends_with_the_bits_of_one_that_was_not(tmp_path):
    made = config()
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    runs.finish(runs.start(made, whole))
    runs.finish(runs.start(made, broken, "SIGTERM", "step", 3), code=LEFT)
    runs.finish(runs.start(made, broken))
    runs.assert_same_bits(broken, whole)
    assert runs.timeless(broken) == runs.timeless(whole)
