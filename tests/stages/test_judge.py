"""The judge stage on a scene's oracle, and verdicts files that somebody else wrote."""

import json

import pytest

from rubric_jax import judges
from rubric_jax.judges import oracle
from rubric_jax.rubrics import records
from rubric_jax.stages import files, judge
from tests.judges import toy

RUBRIC = {
    "key": "k",
    "criteria": [
        {"id": "answer", "text": "t", "kind": "essential", "weight": 1, "axis": "x"},
        {"id": "style", "text": "t", "kind": "additional", "weight": 1, "axis": "x"},
    ],
}
SAMPLES = {
    "a": {"id": "a", "key": "ka", "responses": [{"text": "1"}, {"text": "2"}]},
    "b": {"id": "b", "key": "", "responses": [{"text": "1"}]},
}
GOOD = {"status": "scored", "scores": {"answer": 1.0, "style": 0.5}}


def row(ident, *verdicts, **changes):
    return {"id": ident, "key": "ka", "rubric": RUBRIC, "verdicts": list(verdicts), **changes}


def write(folder, *rows):
    path = folder / "verdicts.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_verdicts_of_another_hand_are_read(tmp_path):
    partial = {"status": "partial", "scores": {"style": 0}}
    path = write(tmp_path, row("a", GOOD, partial), row("b", {"status": "failed"}, key="whatever"))
    found = judge.read_verdicts(path, SAMPLES)
    assert [v["status"] for v in found["a"]["verdicts"]] == ["scored", "partial"]
    assert [c.id for c in found["b"]["rubric"].criteria] == ["answer", "style"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("a", GOOD)], r":1: verdicts: 1 for 2 responses"),
        ([row("a", GOOD, {"status": "good"})], r":1: verdicts\[1\].status: must be one of scored"),
        ([row("a", GOOD, {"status": "scored"})], r":1: verdicts\[1\].scores: found None"),
        ([row("a", GOOD, {"status": "partial", "scores": {"answer": "1"}})], r"found '1'; it must"),
        ([row("a", GOOD, {"status": "partial", "scores": {"answer": True}})], r"found True; it"),
        (
            [row("b", {"status": "partial", "scores": {"answer": 1.5}})],
            r":1: verdicts\[0\].scores.answer: found 1.5; it must be a number in \[0, 1\]",
        ),
        ([row("b", {"status": "partial", "scores": {"answer": float("nan")}})], r"found nan"),
        (
            [row("b", {"status": "partial", "scores": {"anser": 1}})],
            r":1: verdicts\[0\].scores: the rubric has no criterion 'anser'; .*mean 'answer'",
        ),
        ([row("b", {"status": "scored", "scores": {"answer": 1}})], r"no score of 'style'; add"),
        ([row("b", GOOD), row("b", GOOD)], r":2: id: 'b' occurs twice"),
        ([row("a", GOOD, GOOD, key="other")], r":1: key: found 'other', .*have 'ka'.*Judge"),
        ([row("a", GOOD, GOOD)], r"verdicts on 1 instructions, not on 2; 'b' has none"),
        ([row("c", GOOD)], r":1: id: no responses of 'c'"),
    ],
)
def test_what_does_not_fit_names_file_line_and_field(tmp_path, rows, message):
    with pytest.raises(ValueError, match=f"verdicts.jsonl.*{message}"):
        judge.read_verdicts(write(tmp_path, *rows), SAMPLES)


class Asked:
    """What the stage reads of an instruction."""

    where = "pool.jsonl:1"

    def __init__(self, index):
        self.key, self._index = toy.instance(index).key, index

    def instance(self):
        return toy.instance(self._index)


class Pool:
    def of(self, key):
        return next(toy.rubric(i) for i in range(2) if toy.rubric(i).key == key)


def judged(folder, samples, **knobs):
    """Counts, and the path."""
    file = files.File(str(folder / "verdicts.jsonl"), "judge", {}, {})
    store = judges.Store(str(folder / "store.sqlite"))
    asked = {"s0": Asked(0), "s1": Asked(1)}
    made = judge.write_verdicts(oracle.oracle(), asked, samples, Pool(), store, file, **knobs)
    return made, file.path


def _samples(*idents):
    return {i: {"id": i, "key": "", "responses": [{"text": "two"}]} for i in idents}


def test_what_the_stage_left_out_may_be_lacking_and_nothing_else(tmp_path):
    counts, path = judged(tmp_path, _samples("s0"))
    assert counts["instructions"] == counts["verdicts"] == 1
    assert list(judge.read_verdicts(path, _samples("s0", "s1"))) == ["s0"]
    (tmp_path / "verdicts.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"verdicts on 0 instructions, not on 1; 's0' has none"):
        judge.read_verdicts(path, _samples("s0", "s1"))


def test_an_unknown_status_to_ask_for_again_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'unparseable' is no status.*Did you mean 'unparsable'"):
        judged(tmp_path, _samples("s0"), again=("unparseable",))
    assert not (tmp_path / "verdicts.json").exists()


def test_the_rubric_is_written_with_the_verdicts(tmp_path):
    _, path = judged(tmp_path, _samples("s0", "s1"))
    found = judge.read_verdicts(path, _samples("s0", "s1"))
    assert [records.to_json(found[f"s{i}"]["rubric"]) for i in range(2)] == [
        records.to_json(toy.rubric(i)) for i in range(2)
    ]
