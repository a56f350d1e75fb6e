"""The writer of rubrics against a real server on loopback."""

import json

import pytest

from rubric_jax import judges
from rubric_jax.judges import client, writer
from rubric_jax.rubrics import pool
from tests.judges import server as server_lib
from tests.judges import toy

AXES = ("correctness", "grounding")


def criterion(ident="stop sign", **changes):
    value = {
        "id": ident,
        "text": "Says that the sign reads STOP.",
        "kind": "essential",
        "weight": 3,
        "axis": "correctness",
        "scale": "binary",
    }
    return value | changes


def listed(*criteria):
    return json.dumps({"criteria": list(criteria or [criterion()])})


@pytest.fixture
def server():
    with server_lib.Server(default=listed()) as running:
        yield running


def write(server, tasks=None, *, fields=None, **knobs):
    fields = {"backoff": 0.001, "retries": 1, "timeout": 2.0} | (fields or {})
    at = client.Server(model="w", base_url=server.url, **fields)
    tasks = [writer.Task(toy.instance(0))] if tasks is None else tasks
    return list(writer.write(at, tasks, axes=AXES, **knobs))


def test_a_rubric_is_written_for_the_instance(server):
    ((task, written),) = write(server)
    assert written.rubric.key == task.instance.key
    assert [c.id for c in written.rubric.criteria] == ["stop_sign"]
    assert written.rubric.source == "writer:w:1"
    assert (written.problems, written.usage.calls) == ((), 1)


def test_the_prompt_holds_image_instruction_reference_candidates_and_axes(server):
    task = writer.Task(toy.instance(0), "the reference text", ("good one", "bad one"))
    write(server, [task])
    (body,) = server.calls
    image, text = body["messages"][1]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    for part in (task.instance.instruction, "the reference text", "good one", "bad one"):
        assert part in text["text"]
    assert "correctness, grounding" in body["messages"][0]["content"]
    schema = body["response_format"]["json_schema"]["schema"]
    axes = schema["properties"]["criteria"]["items"]["properties"]["axis"]
    assert axes["enum"] == list(AXES)


def test_without_reference_and_candidates_the_prompt_names_neither(server):
    write(server)
    text = server.calls[0]["messages"][1]["content"][-1]["text"]
    assert "<reference>" not in text
    assert "<candidate>" not in text


def test_an_invalid_checklist_is_sent_back_with_the_reason(server):
    server.script(listed(criterion(axis="gronding")))
    ((_, written),) = write(server)
    assert written.rubric is not None
    assert "Did you mean 'grounding'" in written.problems[0]
    assert len(written.raw) == 2
    *_, said, correction = server.calls[1]["messages"]
    assert said["role"] == "assistant"
    assert "unknown axis 'gronding'" in correction["content"]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("I'm sorry, I can't.", "refusal"),
        ("refusal field", "refusal"),
        ("Let me think.", "no JSON object"),
        ('{"rubric": []}', "wrong shape"),
        ('{"criteria": []}', "invalid: criteria: an empty rubric"),
        (listed(criterion(kind="additional")), "invalid: criteria: no essential criterion"),
        (listed(criterion(), criterion()), "invalid: criteria: the id 'stop_sign' occurs twice"),
        (listed(criterion(weight=0)), "invalid: criteria: all weights are zero"),
        (listed(*[criterion(f"c{i}") for i in range(4)]), "too long: 4 criteria, at most 3"),
        ("cut at length", "cut at max_tokens"),
    ],
)
def test_what_is_no_rubric_is_kept_raw_and_named(server, answer, problem):
    server.default = answer
    ((_, written),) = write(server, most=3)
    assert written.rubric is None
    assert len(written.raw) == 2
    assert all(p.startswith(problem) for p in written.problems)


def test_the_second_pass_replaces_the_rubric_and_a_failed_one_leaves_it(server):
    server.script(listed(), listed(criterion("harder")))
    ((_, written),) = write(server, sharpen=True)
    assert [c.id for c in written.rubric.criteria] == ["harder"]
    assert "stop_sign" in server.calls[1]["messages"][-1]["content"]
    server.script(listed(), "no", "no")
    ((_, written),) = write(server, sharpen=True)
    assert [c.id for c in written.rubric.criteria] == ["stop_sign"]
    assert len(written.problems) == 2
    server.script(listed(), 500, 500)
    ((_, written),) = write(server, sharpen=True)
    assert written.rubric is not None
    assert written.problems[0].startswith("failed: ")


def test_a_pool_is_filled_and_a_second_run_asks_for_the_rest_only(server, tmp_path):
    path = str(tmp_path / "pool.jsonl")
    server.script(listed(), "no", "no")
    instances = [toy.instance(i) for i in range(4)]
    for expected in (3, 1):
        have = pool.load(path).rubrics
        tasks = [writer.Task(i) for i in instances if i.key not in have]
        results = write(server, tasks, fields={"concurrency": 1})
        assert pool.append(path, [w.rubric for _, w in results if w.rubric]) == expected
    assert len(pool.load(path, axes=AXES).rubrics) == 4


def test_a_server_that_is_down_stops_the_run(server):
    server.default = 500
    tasks = [writer.Task(toy.instance(i)) for i in range(20)]
    with pytest.raises(judges.Unreachable, match="3 rubrics in a row failed"):
        write(server, tasks, fields={"give_up_after": 3})


def test_axes_are_needed(server):
    at = client.Server(model="w", base_url=server.url)
    with pytest.raises(ValueError, match="needs the reward axes"):
        next(writer.write(at, [], axes=()))
