"""Rubric against outcome: every arm is a config that can run; the tables say what was measured."""

import math

import pytest

from experiments.rubric_vs_outcome import run, summary
from rubric_jax import stages


def result(seed, arm, loss, reward):
    measures = dict.fromkeys(
        ("all essentials", "right answer", "reward/grounding", "response tokens"), 0.5
    )
    return {
        "seed": seed,
        "arm": arm,
        "loss": loss,
        "rows": 10,
        "measures": {"reward": reward, **measures},
    }


RESULTS = {
    "runs": [
        result(0, "base", "none", 0.5),
        result(1, "base", "none", 0.6),
        result(0, "rubric", "dpo", 0.7),
        result(1, "rubric", "dpo", 0.9),
    ],
    "judges": [
        {"seed": 0, "noise": 0.1, "judge": "rubric", "bucket": (0.0, 0.1), "agree": 3, "pairs": 4},
        {"seed": 1, "noise": 0.1, "judge": "rubric", "bucket": (0.0, 0.1), "agree": 1, "pairs": 4},
    ],
}


@pytest.mark.parametrize("loss", run.LOSSES)
@pytest.mark.parametrize("name", run.ARMS)
def test_every_arm_is_a_run_that_can_begin(name, loss, tmp_path):
    arm = run.ARMS[name]
    config = run.config(tmp_path, tmp_path / "base", 0, arm, loss)
    stages.Run(config, str(tmp_path)).check()
    assert config.rounds.updates == run.UPDATES  # whatever the number of rounds


def test_an_interval_is_students():
    mean, half = summary.interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.303 / math.sqrt(3))
    assert math.isnan(summary.interval([1.0])[1])


def test_a_gain_is_against_the_base_of_the_same_seed():
    (gain,) = summary.gains(RESULTS, "reward").values()
    assert gain == pytest.approx([0.2, 0.3])


def test_the_tables_show_means_with_intervals_and_pooled_agreement(tmp_path):
    assert "| rubric | dpo | 10 | 0.800 ± 1.271 |" in summary.arms_table(RESULTS)
    assert "+0.250 ± 0.635 |" in summary.arms_table(RESULTS)
    assert "| 0.1 | rubric | 0.500 (n=8) |" in summary.judges_table(RESULTS)
    (tmp_path / "README.md").write_text(
        "before\n<!-- tables -->\nold\n<!-- end of tables -->\nafter"
    )
    summary.write(RESULTS, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n<!-- tables -->\n\n| arm |")
    assert text.endswith("<!-- end of tables -->\nafter")
    assert "old" not in text
    assert (tmp_path / "arms.svg").exists()


def test_agreement_counts_ties_of_the_judge_as_one_half():
    truth = {"a": 1.0, "b": 0.5, "c": 0.45}
    said = {"a": 0.2, "b": 0.4, "c": 0.4}
    found = summary.agreement(
        0,
        0.0,
        truth=truth,
        judged={"j": said},
        groups=[(None, {"responses": [{"text": t} for t in "abc"]}, None)],
        score=lambda judge, instance, rubric, texts: [judge[t] for t in texts],
    )
    # b against c: 0.05 apart, a tie. a against b and c: 0.5 and 0.55 apart, both wrong.
    assert [(row["bucket"], row["agree"], row["pairs"]) for row in found] == [
        ((0.0, 0.1), 0.5, 1),
        ((0.4, 1.01), 0.0, 2),
    ]
