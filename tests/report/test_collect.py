import base64
import io
import json

import PIL.Image
import pytest

from rubric_jax.data import images
from rubric_jax.report import browse, collect
from tests.report import toy

RUBRIC = {
    "key": "k",
    "source": "by hand",
    "criteria": [
        {"id": "right", "text": "It says two.", "kind": "essential", "weight": 3, "axis": "truth"},
        {"id": "form", "text": "It is short.", "kind": "additional", "weight": 1, "axis": "form"},
    ],
}


def nothing(ids):
    return ()


def verdict(status="scored", **scores):
    return {"status": status, "scores": scores, "reasons": {}, "problems": []}


def sample(key, *texts):
    return {"id": key, "key": "k", "responses": [{"text": t, "ids": [1, 2]} for t in texts]}


def judged(key, *verdicts):
    return {"id": key, "key": "k", "rubric": RUBRIC, "verdicts": list(verdicts)}


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def picture(width, height, kind="PNG"):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width, height), (200, 30, 30)).save(buffer, kind)
    return buffer.getvalue()


def test_an_empty_directory_is_a_run_with_nothing_in_it(tmp_path):
    run = collect.collect(tmp_path)
    assert (run.stages, run.evaluations, run.curves, run.pairs, run.points) == ((),) * 5
    assert run.verdicts == {}
    assert run.browser.instances == ()
    assert run.notes == ("There are no samples yet.",)


def test_no_directory_is_an_error_that_says_so(tmp_path):
    with pytest.raises(ValueError, match="No run directory"):
        collect.collect(tmp_path / "nowhere")


def test_rewards_are_the_weighted_mean_and_only_where_every_criterion_is_scored(tmp_path):
    write(tmp_path / "round_1" / "samples.jsonl", sample("a", "two", "three", "no"))
    scores = (verdict(right=1, form=0.5), verdict(right=0, form=1), verdict("partial", right=1))
    write(tmp_path / "round_1" / "verdicts.jsonl", judged("a", *scores))
    run = collect.collect(tmp_path, lookup=nothing)
    responses = run.browser.instances[0].responses
    assert [r.total for r in responses] == [0.875, 0.25, None]  # (3 * 1 + 0.5) / 4, 1 / 4
    assert responses[0].axes == {"truth": 1.0, "form": 0.5}
    assert responses[2].axes == {}
    assert run.verdicts == {"round_1": {"scored": 2, "partial": 1}}
    assert run.browser.axes == ("truth", "form")


def test_the_aggregation_is_that_of_the_config(tmp_path):
    write(tmp_path / "round_1" / "samples.jsonl", sample("a", "two", "three"))
    scores = (verdict(right=1, form=0), verdict(right=0.5, form=1))
    write(tmp_path / "round_1" / "verdicts.jsonl", judged("a", *scores))
    write(tmp_path / "config.json", {"pair": {"aggregation": {"aggregation": "outcome", "tau": 1}}})
    run = collect.collect(tmp_path, lookup=nothing)
    assert [r.total for r in run.browser.instances[0].responses] == [1.0, 0.0]


def test_samples_without_verdicts_and_without_pairs_are_shown_as_such(tmp_path):
    write(tmp_path / "round_1" / "samples.jsonl", sample("a", "two"))
    one = collect.collect(tmp_path, lookup=nothing).browser.instances[0]
    assert one.rubric is None
    assert one.pairs is None
    assert one.responses[0].status == "not judged"
    assert one.responses[0].tokens == 2


def test_the_last_round_is_shown_and_an_evaluation_where_there_is_no_round(tmp_path):
    write(tmp_path / "base" / "eval" / "samples.jsonl", sample("a", "two"))
    assert collect.collect(tmp_path, lookup=nothing).browser.where == "base/eval"
    for number in (2, 10):
        write(tmp_path / f"round_{number}" / "samples.jsonl", sample("a", "two"))
    assert collect.collect(tmp_path, lookup=nothing).browser.where == "round_10"


def test_instances_shown_are_evenly_spread_and_counted(tmp_path):
    write(tmp_path / "round_1" / "samples.jsonl", *(sample(str(i), "two") for i in range(10)))
    browser = collect.collect(tmp_path, instances=4, lookup=nothing).browser
    assert [one.id for one in browser.instances] == ["0", "2", "5", "7"]
    assert browser.total == 10
    assert collect.collect(tmp_path, instances=0, lookup=nothing).browser.instances == ()


def test_pairs_mark_their_responses_and_give_their_gap(tmp_path):
    write(tmp_path / "round_1" / "samples.jsonl", sample("a", "two", "three"), sample("b", "x"))
    row = {"id": "a/0", "prompt": "How many?", "axis": "truth"}
    totals = {"chosen": 0.9, "rejected": 0.4}
    mined = {"instance": "a", "sample": {"chosen": 1, "rejected": 0}, "total": totals}
    write(tmp_path / "round_1" / "pairs.jsonl", row | {"mined": mined})
    skipped = {"all responses equal": 1}
    counts = {"groups": 2, "rows": 1, "skipped": skipped, "left_out": {}}
    reasons = {"b": "all responses equal"}
    write(tmp_path / "round_1" / "pairs.json", {"counts": counts, "reasons": reasons})
    run = collect.collect(tmp_path, lookup=nothing)
    assert run.pairs == (collect.Pairs("round_1", 1, 2, skipped, {}, (0.5,)),)
    first, second = run.browser.instances
    assert first.pairs == (browse.Pair({"chosen": 1, "rejected": 0}, "truth", totals),)
    assert (second.pairs, second.reason) == ((), "all responses equal")
    assert first.text == "How many?"  # from the row, as the lookup does not know


def test_rewards_of_another_aggregation_are_pointed_out(tmp_path):
    folder = toy.write(tmp_path / "run", instances=3, rounds=1, steps=2)
    assert collect.collect(folder).notes == ()
    config = json.loads((folder / "config.json").read_text())
    config["pair"]["aggregation"] = {"aggregation": "outcome"}
    (folder / "config.json").write_text(json.dumps(config))
    assert "ordered by another" in collect.collect(folder).notes[0]


def test_a_half_written_last_line_is_left_out_and_reported(tmp_path):
    path = tmp_path / "round_1" / "samples.jsonl"
    write(path, sample("a", "two"))
    with path.open("a") as file:
        file.write('{"id": "b", "resp')
    run = collect.collect(tmp_path, lookup=nothing)
    assert run.browser.total == 1
    assert run.notes[0] == "round_1/samples.jsonl: its last line is half-written and left out."


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("round_1/samples.jsonl", '{"id": "a"\n', r"samples.jsonl:1: not JSON"),
        ("round_1/samples.jsonl", "\n[1]\n", r"samples.jsonl:2: .* is no JSON object"),
        ("round_1/samples.jsonl", '{"responses": []}\n', r"samples.jsonl:1: no field 'id'"),
        ("round_1/samples.jsonl", '{"id": 3}\n', r"samples.jsonl:1: id is 3"),
        (
            "round_1/verdicts.jsonl",
            '{"verdicts": [{}]}\n',
            r"verdicts.jsonl:1: .* without a status",
        ),
        ("round_1/train/metrics.jsonl", '{"loss": 1}\n', r"metrics.jsonl:1: no field 'step'"),
        ("base/eval.json", '{"measures": {"reward": {}}}', r"eval.json: reward: no mean"),
        ("config.json", "{", r"config.json: not JSON"),
        (
            "weightings.json",
            '{"axes": ["a"], "points": [{"name": "x", "kind": "dpo", "rewards": {}}]}',
            r"points\[0\]: no reward on the axis 'a'",
        ),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, name, text, message):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        collect.collect(tmp_path, lookup=nothing)


def test_verdicts_of_other_responses_are_refused(tmp_path):
    write(tmp_path / "round_1" / "samples.jsonl", sample("a", "two", "three"))
    write(tmp_path / "round_1" / "verdicts.jsonl", judged("a", verdict(right=1, form=1)))
    with pytest.raises(ValueError, match=r"verdicts.jsonl:1: 1 verdicts on the 2 responses"):
        collect.collect(tmp_path, lookup=nothing)


def test_curves_leave_out_and_count_what_is_not_finite(tmp_path):
    path = tmp_path / "round_1" / "train" / "metrics.jsonl"
    write(path, {"step": 1, "loss": 0.7}, {"step": 2, "loss": None, "nonfinite": 1})
    run = collect.collect(tmp_path)
    assert run.curves == (collect.Curves("round_1", {"loss": ((1, 0.7),)}, 1),)
    assert run.stages == (collect.Stage("round_1/train", {"steps": 2}, True),)


def test_intervals_are_apart_only_without_overlap():
    low, high = collect.Interval(0.4, 0.3, 0.5), collect.Interval(0.7, 0.6, 0.8)
    assert low.apart(high)
    assert high.apart(low)
    assert not low.apart(collect.Interval(0.5, 0.5, 0.6))


def test_pictures_are_scaled_down_kept_once_and_counted_when_broken(tmp_path):
    write(tmp_path / "round_1" / "samples.jsonl", *(sample(key, "two") for key in "abc"))
    large, other = picture(1000, 500), picture(10, 20, "JPEG")
    found = {"a": (large, other), "b": (large,), "c": (b"no picture",)}

    def lookup(ids):
        for key in sorted(ids):
            yield key, browse.Asked("?", tuple(images.Ref(data=data) for data in found[key]))

    browser = collect.collect(tmp_path, lookup=lookup).browser
    assert [one.pictures for one in browser.instances] == [(0, 1), (0,), ()]
    assert len(browser.pictures) == 2
    assert "1 pictures could not be read" in browser.notes[0]
    assert size(browser.pictures[0]) == (320, 160)
    assert size(browser.pictures[1]) == (10, 20)


def size(uri):
    data = base64.b64decode(uri.partition(",")[2])
    return PIL.Image.open(io.BytesIO(data)).size


def test_instructions_are_found_through_the_config_and_missed_in_a_sentence(tmp_path):
    folder = toy.write(tmp_path / "run", instances=4, responses=2, rounds=1, steps=2)
    run = collect.collect(folder)
    assert [one.text for one in run.browser.instances] == [
        asked.text for _, asked in toy.lookup(folder)({one.id for one in run.browser.instances})
    ]
    assert all(one.pictures and one.answer for one in run.browser.instances)
    (folder / "data" / "instructions.jsonl").unlink()
    notes = collect.collect(folder).notes
    assert "The instructions could not be read" in notes[0]
