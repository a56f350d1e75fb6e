"""The rubrics stage against a server that refuses some instructions."""

import json

import pytest

from rubric_jax.rubrics import pool, records
from rubric_jax.stages import rubrics
from tests.judges import server as server_lib
from tests.judges import toy

AXES = ("correctness",)
GOOD = json.dumps(
    {
        "criteria": [
            {"id": "a", "text": "t", "kind": "essential", "weight": 1, "axis": "correctness"}
        ]
    }
)
REFUSED = "I'm sorry, \ud83d I can't."


class Asked:
    """What the stage reads of an instruction."""

    reference, candidates = "", ()

    def __init__(self, index):
        self.key, self.where, self._index = toy.instance(index).key, f"f:{index + 1}", index

    def instance(self):
        return toy.instance(self._index)


@pytest.fixture
def server():
    with server_lib.Server(default=GOOD) as running:
        yield running


def write(server, path, number=4, **knobs):
    fields = {"concurrency": 1, "backoff": 0.001}
    spec = {"writer": "openai", "model": "w", "base_url": server.url, "server": fields}
    asked = [Asked(i) for i in range(number)]
    return rubrics.write_rubrics(spec | {"reasks": 0}, asked, str(path), axes=AXES, **knobs)


def test_refused_instructions_stop_the_run_unless_allowed_and_stay_raw(server, tmp_path):
    path = tmp_path / "rubrics.jsonl"
    server.script(GOOD, REFUSED)
    with pytest.raises(ValueError, match=r"1 of 4 .*without a rubric:\n  f:2: refusal(.|\n)*fail"):
        write(server, path)
    server.default = REFUSED
    with pytest.raises(ValueError, match=r"1 of 1 instructions"):
        write(server, path, failures=0.2)
    counts = write(server, path, failures=0.25)
    assert (counts["without"], counts["in_pool"], counts["written"]) == (1, 3, 0)
    lines = [json.loads(line) for line in (tmp_path / "rubrics.jsonl.failed.jsonl").open()]
    assert len(lines) == 3
    assert lines[0]["key"] == toy.instance(1).key
    assert lines[0]["where"] == "f:2"
    assert lines[0]["problems"] == ["refusal: no checklist was written"]
    assert "I can't." in lines[0]["raw"][0]


def test_an_invalid_checklist_with_half_a_surrogate_pair_goes_back_and_is_kept(server, tmp_path):
    path = tmp_path / "rubrics.jsonl"
    server.default = GOOD.replace('"t"', '"\\ud83d half"')
    spec = {"writer": "openai", "model": "w", "base_url": server.url}
    counts = rubrics.write_rubrics(spec, [Asked(0)], str(path), axes=AXES, failures=1.0)
    assert counts.get("written") + counts.get("without", 0) == 1
    assert len(pool.load(str(path)).rubrics) == counts["written"]


def test_rubrics_are_counted_by_their_source(server, tmp_path):
    path = tmp_path / "rubrics.jsonl"
    other = records.parse(
        {"key": toy.instance(0).key, "source": "oracle", **json.loads(GOOD)}, where="x"
    )
    pool.append(str(path), [other])
    counts = write(server, path, number=3)
    assert counts["sources"] == {"oracle": 1, "writer:w:1": 2}
