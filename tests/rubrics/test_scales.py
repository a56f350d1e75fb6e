"""Scales: raw judgements to [0, 1], and what is refused."""

import pytest

from rubric_jax.rubrics import scales


@pytest.mark.parametrize(
    ("scale", "raw", "worth"),
    [
        ("halves", 0, 0.0),
        ("halves", 0.5, 0.5),
        ("halves", "0.5", 0.5),
        ("halves", "1/2", 0.5),
        ("halves", "1.0", 1.0),
        ("binary", True, 1.0),
        ("binary", "No", 0.0),
        ("binary", " yes ", 1.0),
        ("binary", 1, 1.0),
        ("binary", "0", 0.0),
        ("1-5", 1, 0.0),
        ("1-5", 2, 0.25),
        ("1-5", "4", 0.75),
        ("1-5", 5.0, 1.0),
        ("1-5", "3/5", 0.5),
    ],
)
def test_a_level_has_its_worth(scale, raw, worth):
    assert scales.read(scale, raw) == worth


@pytest.mark.parametrize(
    ("scale", "raw"),
    [
        ("halves", 0.7),
        ("halves", 2),
        ("halves", True),
        ("halves", -1),
        ("1-5", 0),
        ("1-5", 6),
        ("1-5", 4.5),
        ("1-5", True),
        ("1-5", "great"),
        ("binary", 0.5),
        ("binary", "maybe"),
        ("binary", None),
        ("binary", [1]),
        ("halves", float("nan")),
        ("1-5", float("inf")),
        ("1-5", "nan"),
        ("1-5", "1e999"),
    ],
)
def test_what_is_off_the_scale_is_refused(scale, raw):
    with pytest.raises(ValueError, match="off the scale"):
        scales.read(scale, raw)


def test_an_unknown_scale_names_the_nearest():
    with pytest.raises(ValueError, match=r"'binari' is no scale.*Did you mean 'binary'"):
        scales.read("binari", 1)


@pytest.mark.parametrize("name", scales.SCALES)
def test_levels_rise_from_0_to_1_and_each_reads_as_itself(name):
    levels = scales.get(name).levels
    assert list(levels.values()) == sorted(levels.values())
    assert (min(levels.values()), max(levels.values())) == (0.0, 1.0)
    assert {level: scales.read(name, level) for level in levels} == dict(levels)
