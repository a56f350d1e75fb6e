"""What a run remembers of earlier steps goes on from a checkpoint as if nothing had happened."""

import pytest

from rubric_jax import checkpoint
from tests.train import runs

LEFT = 143  # 128 + SIGTERM
BLIND = "chosen@corrupted"


def config():
    """A reference that moves at step 2, patience that ends after step 3, an epoch in two phases and
    noise that is drawn in the step."""
    return runs.config(
        data={
            "eval_path": str(runs.root() / "data" / "heldout.jsonl"),
            "curriculum": {"by": "gap", "phases": 2},
            "branches": ("chosen", "rejected", BLIND),
            "contexts": {
                "corrupted": {
                    "corruption": "diffusion_noise",
                    "when": "step",
                    "step": {"from": 100, "to": 900, "over": 4},
                }
            },
        },
        train={
            "checkpoint_every": 10,
            "log_every": 1,
            "reference": "step",
            "refresh": 2,
            "refresh_mixup": 0.5,
            "eval_every": 1,
            "best_metric": "loss",
            "best_mode": "min",
            "keep": 1,
            "keep_best": 1,
            "patience": 2,
            "min_delta": 10.0,  # more than any loss can fall
        },
        objective={"dpo": runs.PAIR, "seen": {**runs.PAIR, "term": "dpo", "lose": BLIND}},
    )


@pytest.mark.slow
def test_a_run_that_left_and_went_on_ends_with_the_bits_of_one_that_did_not(tmp_path):
    made = config()
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    said = runs.finish(runs.start(made, whole))
    assert "Stopped early, at step 3 of 8: held-out loss has not come more than 10 below" in said
    runs.finish(runs.start(made, broken, "SIGTERM", "step", 2), code=LEFT)
    runs.finish(runs.start(made, broken))
    runs.assert_same_bits(broken, whole)
    assert runs.timeless(broken) == runs.timeless(whole)
    assert [line["step"] for line in runs.metrics(broken) if "eval/loss" in line] == [1, 2, 3]
    best = checkpoint.params(str(broken), "best")["decoder"]["norm"]["scale"]
    expected = checkpoint.params(str(whole), "best")["decoder"]["norm"]["scale"]
    assert best.tobytes() == expected.tobytes()
