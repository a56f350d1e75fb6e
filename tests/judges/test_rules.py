"""Rules: golden values of each, the writer that puts them into rubrics, and the judge with both."""

import json

import numpy as np
import pytest

from rubric_jax import judges
from rubric_jax.data import instructions
from rubric_jax.judges import boxes, rules, verdicts, writers
from rubric_jax.rubrics import records, templates

CUP = {"bbox_2d": [0, 0, 2, 2], "label": "cup"}


def said(*found, text="Here: "):
    return text + "```json\n" + json.dumps(list(found)) + "\n```"


def box(*corners, label="cup"):
    return {"bbox_2d": list(corners), "label": label}


@pytest.mark.parametrize(
    ("check", "response", "score"),
    [
        ({"rule": "answer", "right": "two"}, "I see two, so the answer is Two.", 1.0),
        ({"rule": "answer", "right": "two"}, "The answer is three.", 0.0),
        ({"rule": "answer", "right": "two"}, "Two.", 0.0),  # no "answer is"
        ({"rule": "answer", "right": "B", "pattern": r"(?s)(.*)"}, " (b) ", 1.0),
        ({"rule": "pattern", "pattern": r"<a>.*</a>"}, "x <a>1</a>", 1.0),
        ({"rule": "pattern", "pattern": r"<a>.*</a>", "whole": True}, "x <a>1</a>", 0.0),
        ({"rule": "pattern", "pattern": r"<a>.*</a>", "whole": True}, " <a>1</a>\n", 1.0),
        ({"rule": "length", "words": 3, "slack": 4}, "one two three", 1.0),
        ({"rule": "length", "words": 3, "slack": 4}, "one two three four", 0.75),
        ({"rule": "length", "words": 3}, "one two three four", 0.0),
        # {a, b} against {b, c, d}: one of four.
        (
            {"rule": "overlap", "items": ["B", "c", "d"], "pattern": r"- (\w+)"},
            "- a\n- b\n- b",
            0.25,
        ),
        ({"rule": "overlap", "items": [], "pattern": r"- (\w+)"}, "nothing", 1.0),
        ({"rule": "boxes", "boxes": [CUP]}, said(CUP), 1.0),
        ({"rule": "boxes", "boxes": [CUP]}, "[0, 0, 2, 2]", 0.0),
        ({"rule": "boxes", "boxes": [CUP]}, said(box(2, 2, 0, 0)), 0.0),  # inside out
        ({"rule": "boxes", "boxes": []}, "There is none.", 1.0),
        ({"rule": "box_precision", "boxes": [CUP]}, said(CUP), 1.0),
        ({"rule": "box_precision", "boxes": [CUP]}, "none", 0.0),
        ({"rule": "box_precision", "boxes": []}, "none", 1.0),
        ({"rule": "box_precision", "boxes": []}, said(CUP), 0.0),
        # GIoU 4/6 lies between the thresholds and counts as it is; 1 is above them.
        ({"rule": "box_precision", "boxes": [CUP]}, said(box(0, 0, 3, 2)), 2 / 3),
        ({"rule": "box_precision", "boxes": [CUP], "low": 0.7}, said(box(0, 0, 3, 2)), 0.0),
        # Two of three found, and GIoU 2/3 is a hit: 2/3 lies between 0.5 and 0.75.
        (
            {"rule": "box_recall", "boxes": [CUP, box(5, 5, 7, 7), box(9, 9, 11, 11)]},
            said(box(0, 0, 3, 2), box(5, 5, 7, 7)),
            2 / 3,
        ),
        ({"rule": "box_recall", "boxes": [CUP, CUP, CUP]}, said(CUP), 0.0),  # 1/3 < 0.5
    ],
)
def test_rules_score_as_worked_by_hand(check, response, score):
    assert rules.bind(check)(response) == pytest.approx(score)


def test_giou_of_the_golden_pair():
    a, b = np.array([0.0, 0, 2, 2]), np.array([1.0, 1, 3, 3])
    assert boxes.giou(a, b) == pytest.approx(1 / 7 - 2 / 9)
    assert boxes.giou(a, a) == 1.0
    # Far apart: nothing inside, and 8 of the hull's 144 are covered.
    assert boxes.giou(a, np.array([10.0, 10, 12, 12])) == pytest.approx(-136 / 144)


def test_matching_is_one_to_one_and_of_least_cost():
    right = boxes.read([box(0, 0, 2, 2), box(10, 0, 12, 2)])
    found = boxes.read([box(10, 0, 12, 2), box(1, 0, 3, 2), box(0, 0, 2, 2)])
    np.testing.assert_allclose(boxes.matched(found, right), [1.0, 1.0])
    # The label is worth 1: equal places go to the box of the right name.
    named = boxes.read([box(0, 0, 2, 2, label="cup"), box(0, 0, 2, 2, label="dog")])
    wide = boxes.read([box(0, 0, 4, 2, label="Dog")])
    assert boxes.matched(wide, named).tolist() == [0.5]


def test_a_rule_changes_at_its_step():
    check = {"rule": "box_precision", "boxes": [CUP], "later": {"step": 5, "low": 0.7}}
    rubric = records.parse({"key": "k", "criteria": [_criterion(check)]}, where="here")
    response = said(box(0, 0, 3, 2))
    for step, expected in ((0, 2 / 3), (4, 2 / 3), (5, 0.0), (9, 0.0)):
        now = rules.at(rubric, step)
        assert rules.bind(now.criteria[0].check)(response) == pytest.approx(expected)
    assert rules.at(rubric, 4).digest != rules.at(rubric, 5).digest
    plain = records.parse({"key": "k", "criteria": [_criterion({"rule": "boxes"})]}, where="h")
    assert rules.at(plain, 9) is plain


def _criterion(check, ident="a"):
    return {
        "id": ident,
        "text": "t",
        "kind": "essential",
        "weight": 1,
        "axis": "a",
        "scale": "binary",
        "check": check,
    }


SPEC = {
    "writer": "rules",
    "rules": {
        "right": {"rule": "answer", "axis": "correctness", "weight": 3},
        "form": {"rule": "pattern", "pattern": "answer is", "axis": "format"},
    },
}


def tasks(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": "q", "id": str(i), **r}) + "\n"
                            for i, r in enumerate(rows)))  # fmt: skip
    return list(instructions.read(str(path)))


def requests(written, response):
    for task, found in written:
        yield verdicts.Request(task.id, task.instance(), response, found.rubric)


def test_written_rules_are_judged_and_kept(tmp_path):
    axes = ("correctness", "format")
    writers.check(SPEC, axes)
    found = tasks(tmp_path, {"answer": "two"}, {"answer": "three"})
    written = list(writers.build(SPEC)(found, axes))
    assert [c.axis for c in written[0][1].rubric.criteria] == list(axes)
    store = judges.Store(str(tmp_path / "v.sqlite"))
    asked = list(requests(written, "the answer is two"))
    got, _ = judges.collect(judges.build({"judge": "rules"}), asked, store)
    assert got["0"].scores == {"right": 1.0, "form": 1.0}
    assert got["1"].scores == {"right": 0.0, "form": 1.0}
    _, tally = judges.collect(judges.build({"judge": "rules"}), asked, store)
    assert tally.from_store == 2


def test_an_instruction_without_the_answer_needs_a_template(tmp_path):
    found = tasks(tmp_path, {"answer": "two"}, {})
    with pytest.raises(ValueError, match=r"rows.jsonl:2: the rules need answer, which the row"):
        list(writers.build(SPEC)(found, ()))
    spec = {**SPEC, "otherwise": "general"}
    (_, first), (_, second) = writers.build(spec)(found, ())
    common = [c.id for c in templates.load("general").criteria]
    assert [c.id for c in first.rubric.criteria] == ["right", "form"]
    assert [c.id for c in second.rubric.criteria] == ["form", *common]  # needs no answer


def test_a_criterion_without_a_rule_is_for_another_judge(tmp_path):
    spec = {"writer": "rules", "rules": {"mark": {"text": "It is clear.", "scale": "1-5"}}}
    writers.check(spec, ())
    ((_, found),) = writers.build(spec)(tasks(tmp_path, {}), ())
    (criterion,) = found.rubric.criteria
    assert (criterion.scale, criterion.check, criterion.axis) == ("1-5", None, "mark")
    with pytest.raises(ValueError, match=r"rules.mark: Unknown rule ''"):
        writers.check({"writer": "rules", "rules": {"mark": {"scale": "1-5"}}}, ())


def test_criteria_without_a_rule_go_to_the_other_judge(tmp_path, monkeypatch):
    def score(requests, journal):
        for request in requests:
            journal(request)["part"] = "reply"
            ids = [criterion.id for criterion in request.rubric.criteria]
            asked.append(ids)
            status = "refused" if request.response == "no" else "scored"
            yield request, verdicts.Verdict(status, dict.fromkeys(ids, 0.5))

    asked: list = []
    identity = verdicts.Identity("fake", "m")
    judge = rules.judge(verdicts.Judge(identity, score))
    assert "fake" in judge.identity.settings
    mixed = [_criterion({"rule": "length", "words": 1}), _criterion(None, "b")]
    whole = records.parse({"key": "k", "criteria": mixed[:1]}, where="here")
    mixed = records.parse({"key": "k", "criteria": mixed}, where="here")
    instance = records.Instance(instruction="q")
    store = judges.Store(str(tmp_path / "v.sqlite"))
    got, _ = judges.collect(
        judge,
        [
            verdicts.Request("mixed", instance, "yes", mixed),
            verdicts.Request("whole", instance, "yes", whole),
            verdicts.Request("refused", instance, "no", mixed),
        ],
        store,
    )
    assert asked == [["b"], ["b"]]
    assert got["mixed"].scores == {"a": 1.0, "b": 0.5}
    assert got["whole"].scores == {"a": 1.0}
    assert got["refused"].status == "refused"
    with pytest.raises(ValueError, match="cannot decide the criterion 'b'"):
        judges.collect(rules.judge(), [verdicts.Request("x", instance, "yes", mixed)], store)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"right": {"rule": "anser"}}, "rules.right: Unknown rule 'anser'.*'answer'"),
        ({"right": {"rule": "answer", "patern": "x"}}, "no knob 'patern'.*'pattern'"),
        ({"right": {"rule": "answer", "right": "2"}}, "right comes from the instruction"),
        ({"right": {"rule": "pattern", "pattern": "("}}, "not a regular expression"),
        ({"right": {"rule": "length", "words": 0}}, "words is 0"),
        ({"right": {"rule": "boxes", "later": {"low": 1}}}, "later is .* it must have a step"),
        ({"right": {"rule": "box_recall", "later": {"step": 3, "lw": 1}}}, "no knob 'lw'"),
        ({"right": {"rule": "answer", "axis": "other"}}, "config.data.axes .* lacks other"),
    ],
)
def test_wrong_rules_are_refused_before_anything_runs(change, message):
    spec = {**SPEC, "rules": {**SPEC["rules"], **change}}
    with pytest.raises(ValueError, match=message):
        writers.check(spec, ("correctness", "format"))


def test_the_other_judge_is_checked_with_the_config():
    with pytest.raises(ValueError, match=r"judge 'rules': .*noise is 2"):
        judges.check({"judge": "rules", "otherwise": {"judge": "oracle", "noise": 2.0}})
    assert judges.build({"judge": "rules", "otherwise": {"judge": "oracle"}}).identity.settings
