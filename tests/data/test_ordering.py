"""Curricula and views: which rows an epoch visits, and when."""

import collections

import numpy as np
import pytest

from rubric_jax import config
from rubric_jax.data import audit, loading, ordering
from tests.data import toy

AXES = ("correct", "short")
# Gap of correct, gap of short, level of ten rows.
KNOWN = [
    (0.1, 0.9, 3), (0.5, 0.1, 2), (0.9, 0.0, 1), (0.3, 0.2, 2), (0.7, 0.0, 1),
    (0.2, 0.5, 3), (0.6, 0.3, 1), (0.8, 0.1, 1), (0.4, 0.4, 2), (0.0, 0.6, 3),
]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ordering")
    rows = [
        toy.row(
            chosen="red " * (1 + i % 4),
            chosen_rewards={"correct": correct, "short": short},
            rejected_rewards={"correct": 0.0, "short": 0.0},
            level=level,
        )
        for i, (correct, short, level) in enumerate(KNOWN)
    ]
    return toy.prepare(toy.write(folder, rows), folder / "cache", processor, axes=AXES)


def data(**fields):
    made = config.Data(axes=AXES, **fields)
    ordering.check(made)
    return made


def plan(prepared, made, **kwargs):
    rows = ordering.rows(prepared, made)
    phases = ordering.phases(prepared, made, rows)
    return loading.plan(prepared, rows=rows, phases=phases, **{"batch_size": 2, **kwargs})


def visited(plan, epoch=0):
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    return [[int(row) for row in plan(step)[1] if row >= 0] for step in steps]


def test_a_gap_weighs_the_axes_that_are_named(prepared):
    gaps = ordering.gap(prepared, weights={"correct": 1.0, "short": 0.5})
    np.testing.assert_allclose(gaps, [c + 0.5 * s for c, s, _ in KNOWN], rtol=1e-6)
    even = ordering.gap(prepared)
    np.testing.assert_allclose(even, [(c + s) / 2 for c, s, _ in KNOWN], rtol=1e-6)
    back = ordering.gap(prepared, win="rejected", lose="chosen")
    np.testing.assert_allclose(back, -even)


def test_large_gaps_come_first_and_every_row_once(prepared):
    by = {"by": "gap", "weights": {"correct": 1.0}, "phases": 2}
    batches = visited(plan(prepared, data(curriculum=by), batch_size=5, buckets=1))
    assert [sorted(batch) for batch in batches] == [[1, 2, 4, 6, 7], [0, 3, 5, 8, 9]]
    last = visited(plan(prepared, data(curriculum={**by, "order": "ascending"}), batch_size=5))
    assert sorted(last[0]) == [0, 3, 5, 8, 9]


def test_as_many_phases_as_rows_is_the_sorted_order(prepared):
    by = {"by": "gap", "weights": {"correct": 1.0}, "phases": 100}
    batches = visited(plan(prepared, data(curriculum=by), batch_size=1, buckets=1))
    assert batches == [[2], [7], [4], [6], [1], [8], [3], [5], [0], [9]]


@pytest.mark.parametrize("buckets", [1, 3])
@pytest.mark.parametrize("batch_size", [2, 3, 4])
def test_no_row_comes_before_its_phase_whatever_the_batches(prepared, buckets, batch_size):
    by = {"by": "level", "order": "ascending", "phases": 3}
    made = plan(prepared, data(curriculum=by), batch_size=batch_size, buckets=buckets)
    assert made.steps_per_epoch == -(-10 // batch_size)
    for epoch in range(3):
        batches = visited(made, epoch)
        assert sorted(row for batch in batches for row in batch) == list(range(10))
        latest = [made.phase[batch].max() for batch in batches]
        assert latest == sorted(latest)


def test_rows_of_a_phase_are_shuffled_anew_in_every_epoch(prepared):
    by = {"by": "gap", "phases": 2}
    made = plan(prepared, data(curriculum=by), batch_size=1, buckets=1)
    epochs = [tuple(row for (row,) in visited(made, epoch)) for epoch in range(8)]
    assert len(set(epochs)) > 4
    assert len({frozenset(epoch[:5]) for epoch in epochs}) == 1
    first = collections.Counter(epoch[0] for epoch in epochs)
    assert len(first) > 1


def test_one_phase_is_the_plain_shuffle(prepared):
    one = plan(prepared, data(curriculum={"by": "gap"}), buckets=2)
    assert visited(one) == visited(plan(prepared, data(), buckets=2))


def test_a_view_takes_the_rows_in_its_window(prepared):
    inside = {"by": "level", "low": 2, "high": 2}
    np.testing.assert_array_equal(ordering.rows(prepared, data(view=inside)), [1, 3, 8])
    gaps = {"by": "gap", "weights": {"correct": 1.0}, "low": 0.75}
    np.testing.assert_array_equal(ordering.rows(prepared, data(view=gaps)), [2, 7])


def test_parts_of_a_view_are_all_rows_once(prepared):
    parts = [
        ordering.rows(prepared, data(view={"by": "gap", "part": k, "of": 3})).tolist()
        for k in (1, 2, 3)
    ]
    assert sorted(row for part in parts for row in part) == list(range(10))
    by = {"by": "gap", "weights": {"correct": 1.0}, "part": 1, "of": 3}
    np.testing.assert_array_equal(ordering.rows(prepared, data(view=by)), [2, 4, 6, 7])


def test_a_curriculum_orders_what_a_view_keeps(prepared):
    both = data(
        view={"by": "level", "high": 2},
        curriculum={"by": "level", "order": "ascending", "phases": 7},
    )
    batches = visited(plan(prepared, both, batch_size=1))
    assert [KNOWN[row][2] for (row,) in batches] == [1, 1, 1, 1, 2, 2, 2]


def test_the_audit_counts_the_view_and_the_phases(prepared):
    made = data(
        view={"by": "level", "high": 2},
        curriculum={"by": "gap", "weights": {"correct": 1.0}, "phases": 2},
    )
    text = audit.table(prepared, plan(prepared, made, batch_size=2, buckets=1))
    lines = [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]
    assert "of these in config.data.view 7" in lines
    assert "1 4 0.6 to 0.9 0" in lines
    assert "2 3 0.3 to 0.5 2" in lines


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"curriculum": {"phases": 2}}, r"data.curriculum is .* one of gap, level"),
        ({"curriculum": {"by": "gapp"}}, r"Unknown key 'gapp'.*Did you mean 'gap'"),
        ({"curriculum": {"by": "gap", "phase": 2}}, r"no knob 'phase'.*takes order, phases"),
        ({"curriculum": {"by": "gap", "phases": 0}}, r"phases is 0"),
        ({"curriculum": {"by": "gap", "order": "up"}}, r"order is 'up'; it must be one of asc"),
        ({"view": {"by": "level", "low": 2, "high": 1}}, r"low at most high"),
        ({"view": {"by": "level", "part": 4, "of": 3}}, r"part must be in 1 .. of"),
    ],
)
def test_a_slip_is_refused_before_any_data(fields, message):
    with pytest.raises(ValueError, match=message):
        data(**fields)


def test_what_the_data_lack_is_named(prepared, processor, tmp_path):
    with pytest.raises(ValueError, match=r"leaves none of 10 rows; .* from 1 to 3"):
        ordering.rows(prepared, data(view={"by": "level", "low": 4}))
    with pytest.raises(ValueError, match=r"weights.corect is no axis.*Did you mean 'correct'"):
        ordering.rows(prepared, data(view={"by": "gap", "weights": {"corect": 1.0}}))
    rows = [toy.row(level=1), toy.row(chosen="a red square .", level="hard")]
    bare = toy.prepare(toy.write(tmp_path, rows), tmp_path / "cache", processor)
    assert list(bare.counts.unread) == ["level"]  # words are nobody's order
    with pytest.raises(ValueError, match=r"curriculum: 'level' reads .* 1 of 2 .*first: row 2"):
        plan(bare, data(curriculum={"by": "level"}))
    with pytest.raises(ValueError, match=r"view: 'gap' reads rewards .*data.axes is empty"):
        ordering.rows(bare, data(view={"by": "gap"}))
