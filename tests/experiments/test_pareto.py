import numpy as np
import pytest

from experiments.pareto import summary

AXES = ("grounding", "completeness")


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([], 0.0),
        ([(0.5, 0.4)], 0.2),
        ([(0.5, 0.4), (0.2, 0.9)], 0.2 + 0.2 * 0.5),  # a step of width 0.2 on top
        ([(0.5, 0.4), (0.2, 0.9), (0.4, 0.3)], 0.3),  # the third is dominated
        ([(0.5, 0.4), (0.5, 0.4), (0.5, 0.2)], 0.2),
        ([(0.5, -0.1), (-0.2, 0.9)], 0.0),  # not above the reference on both axes
    ],
)
def test_hypervolume_by_hand(points, area):
    assert summary.hypervolume(points) == pytest.approx(area)
    assert summary.hypervolume(points[::-1]) == pytest.approx(area)


def test_hypervolume_agrees_with_counting_random_points():
    rng = np.random.default_rng(0)
    points = rng.uniform(0.2, 1, (6, 2))
    drawn = rng.uniform(0, 1, (200_000, 2))
    below = (drawn[:, None] <= points[None]).all(-1).any(-1) & (drawn >= 0.1).all(-1)
    assert summary.hypervolume(points, (0.1, 0.1)) == pytest.approx(below.mean(), abs=0.005)


def point(kind, rewards):
    rewards = np.asarray(rewards, float)
    return {
        "name": kind,
        "kind": kind,
        "ids": [str(i) for i in range(len(rewards))],
        "per_instance": dict(zip(AXES, rewards.T.tolist())),
    }


def points(modpo=(0.8, 0.8)):
    return [
        point("base", [[0.1, 0.1]] * 4),
        point("dpo on one axis", [[0.9, 0.2]] * 4),
        point("dpo on one axis", [[0.2, 0.9]] * 4),
        point("modpo", [modpo] * 4),
        point("dpo on the sum", [[0.5, 0.5]] * 4),
        point("soup", [[0.4, 0.2], [0.6, 0.8]] * 2),
    ]


def test_every_front_has_the_ends_and_leads_are_paired():
    found = summary.hypervolumes(points(), AXES)
    ends = 0.2 * 0.2 + 0.2 * 0.7 + 0.7 * 0.2
    assert found["base"]["hypervolume"] == pytest.approx(0.01)
    assert found["modpo"]["hypervolume"] == pytest.approx(0.64 + 0.02 + 0.02)
    assert found["dpo on the sum"]["hypervolume"] == pytest.approx(ends + 0.3 * 0.3)
    assert found["soup"]["hypervolume"] == pytest.approx(ends + 0.3 * 0.3)  # a mean of (0.5, 0.5)
    assert found["modpo"]["lead low"] == found["modpo"]["lead high"] == 0
    assert found["soup"]["lead low"] < found["soup"]["lead of modpo"] < found["soup"]["lead high"]
    # Equal rewards on every instruction: nothing to resample.
    assert found["dpo on the sum"]["lead low"] == pytest.approx(0.68 - ends - 0.09)


def test_other_instructions_are_refused():
    bad = points()
    bad[3]["ids"] = bad[3]["ids"][::-1]
    with pytest.raises(ValueError, match="modpo was measured on other instructions"):
        summary.hypervolumes(bad, AXES)
