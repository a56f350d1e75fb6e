"""The verdict store: nothing judged twice, nothing lost."""

import multiprocessing
import os
import pickle
import signal
import sqlite3

import pytest

from rubric_jax import judges
from rubric_jax.judges import oracle, verdicts
from tests.judges import toy

IDENTITY = verdicts.Identity("j", "m")


def store(folder):
    return judges.Store(str(folder / "sub" / "verdicts.sqlite"))


def verdict(status="scored", score=1.0, **more):
    return judges.Verdict(status, {"a": score} if status == "scored" else {}, **more)


def counting(statuses=None):
    """(judge, ids it was asked about): the oracle, or a judge with the given statuses in turn."""
    asked, inner = [], oracle.oracle()

    def score(requests, journal):
        for request, found in inner.score(requests, journal):
            asked.append(request.id)
            yield request, judges.Verdict(statuses.pop(0), {}) if statuses else found

    return inner._replace(score=score), asked


def test_what_is_put_is_got(tmp_path):
    kept = judges.Verdict(
        "partial",
        {"a": 0.5},
        ("missing: b",),
        ('{"a": 0.5} ü',),
        {"a": "seen"},
        judges.Usage(2, 100, 10, 0.25, {"429": 1}),
    )
    s = store(tmp_path)
    assert s.get("k") is None
    assert s.put("k", IDENTITY, kept) == kept
    assert s.get("k") == kept
    assert s.counts() == {"partial": 1}


def test_the_first_verdict_stays(tmp_path):
    s = store(tmp_path)
    s.put("k", IDENTITY, verdict(score=1.0))
    assert s.put("k", IDENTITY, verdict(score=0.0)) == verdict(score=1.0)
    assert s.put("k", IDENTITY, verdict(score=0.0), replace=True) == verdict(score=0.0)


def test_a_failed_verdict_is_never_stored(tmp_path):
    with pytest.raises(ValueError, match="'failed' is not to be stored"):
        store(tmp_path).put("k", IDENTITY, verdict("failed"))


def test_the_key_is_the_content_and_not_the_name():
    base = toy.request(0)
    first, *rest = base.rubric.criteria
    criteria = (first.model_copy(update={"weight": 9.0}), *rest)
    heavier = base.rubric.model_copy(update={"criteria": criteria})
    keys = {
        verdicts.key(identity, request)
        for identity, request in (
            (IDENTITY, base),
            (IDENTITY._replace(model="n"), base),
            (IDENTITY._replace(judge="k"), base),
            (IDENTITY._replace(prompt="2"), base),
            (IDENTITY._replace(settings="{}"), base),
            (IDENTITY, toy.request(0, "other")),
            (IDENTITY, toy.request(0, rubric=heavier)),
            (IDENTITY, toy.request(1)),
        )
    }
    assert len(keys) == 8
    assert verdicts.key(IDENTITY, toy.request(0, id="x")) == verdicts.key(IDENTITY, base)


def test_nothing_is_judged_twice(tmp_path):
    judge, asked = counting()
    requests = [toy.request(i) for i in range(5)]
    first, tally = judges.collect(judge, requests[:3], store(tmp_path))
    assert (tally.judged, tally.from_store) == (3, 0)
    second, tally = judges.collect(judge, requests, store(tmp_path))
    assert asked == ["r0", "r1", "r2", "r3", "r4"]
    assert (tally.requests, tally.judged, tally.from_store) == (5, 2, 3)
    assert {k: second[k] for k in first} == first
    assert tally.lines()[0] == (
        "5 verdicts (5 scored): 3 from the store, 0 equal to another, 2 judged now"
    )


def test_equal_responses_are_judged_once(tmp_path):
    judge, asked = counting()
    requests = [toy.request(0, id=f"sample {k}") for k in range(4)]
    found, tally = judges.collect(judge, requests, store(tmp_path))
    assert len(asked) == 1
    assert (len(found), tally.shared, tally.judged) == (4, 3, 1)


def test_requests_are_taken_lazily_and_verdicts_come_out_early(tmp_path):
    def forever():
        i = 0
        while True:
            yield toy.request(i % 50, f"text {i}")
            i += 1

    stream = judges.stream(oracle.oracle(), forever(), store(tmp_path))
    assert len([next(stream) for _ in range(10)]) == 10


def test_stored_verdicts_of_a_status_can_be_asked_for_again(tmp_path):
    requests = [toy.request(i) for i in range(3)]
    judges.collect(counting(["unparsable", "refused"])[0], requests, store(tmp_path))
    judge, asked = counting()
    _, tally = judges.collect(judge, requests, store(tmp_path))
    assert asked == []
    assert tally.statuses == {"unparsable": 1, "refused": 1, "scored": 1}
    _, tally = judges.collect(judge, requests, store(tmp_path), again=("unparsable",))
    assert asked == ["r0"]
    assert store(tmp_path).counts() == {"refused": 1, "scored": 2}


def test_a_failed_verdict_is_asked_for_the_next_time(tmp_path):
    requests = [toy.request(i) for i in range(2)]
    found, _ = judges.collect(counting(["failed"])[0], requests, store(tmp_path))
    assert [found[r.id].status for r in requests] == ["failed", "scored"]
    judge, asked = counting()
    judges.collect(judge, requests, store(tmp_path))
    assert asked == ["r0"]


def test_two_requests_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Two requests have the id 'x'"):
        judges.collect(
            oracle.oracle(), [toy.request(0, id="x"), toy.request(1, id="x")], store(tmp_path)
        )


def test_replies_are_journalled_until_the_verdict_is_there(tmp_path):
    store(tmp_path).journal("k")["0"] = "reply"
    assert dict(store(tmp_path).journal("k")) == {"0": "reply"}
    assert dict(store(tmp_path).journal("other")) == {}
    store(tmp_path).put("k", IDENTITY, verdict())
    assert dict(store(tmp_path).journal("k")) == {}


def test_a_store_of_another_format_is_refused(tmp_path):
    path = tmp_path / "v.sqlite"
    judges.Store(str(path)).put("k", IDENTITY, verdict())
    other = tmp_path / "w.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE verdicts (key TEXT)")
    connection.execute("CREATE TABLE calls (key TEXT)")
    connection.execute("PRAGMA user_version = 7")
    connection.commit()
    connection.close()
    before = other.read_bytes()
    with pytest.raises(ValueError, match=r"w.sqlite' is a store of format 7.*reads format 1.*new"):
        judges.Store(str(other)).get("k")
    assert other.read_bytes() == before


def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "v.sqlite"
    path.write_text("hello " * 500)
    with pytest.raises(ValueError, match="is no verdict store"):
        judges.Store(str(path)).get("k")
    assert path.read_text() == "hello " * 500
    connection = sqlite3.connect(tmp_path / "refs.sqlite")
    connection.execute("CREATE TABLE logps (key BLOB)")
    connection.close()
    with pytest.raises(ValueError, match="is a store of format 0"):
        judges.Store(str(tmp_path / "refs.sqlite")).get("k")


def test_an_unwritable_store_says_so(tmp_path):
    (tmp_path / "sub").write_text("")
    with pytest.raises(ValueError, match=r"verdict store"):
        store(tmp_path).get("k")


def test_a_pickled_store_reads_the_same_file(tmp_path):
    store(tmp_path).put("k", IDENTITY, verdict())
    assert pickle.loads(pickle.dumps(store(tmp_path))).get("k") == verdict()


@pytest.mark.slow
def test_several_processes_write_one_store(tmp_path):
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_fill, args=(tmp_path, n)) for n in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
    s = store(tmp_path)
    assert s.counts() == {"scored": 50}
    winners = {s.get(str(i)).scores["a"] for i in range(50)}
    assert winners <= {0.0, 1.0, 2.0, 3.0}


def _fill(folder, n):
    for i in range(50):
        store(folder).put(str(i), IDENTITY, verdict(score=float(n)))


@pytest.mark.slow
def test_the_store_survives_a_killed_writer(tmp_path):
    child = multiprocessing.get_context("spawn").Process(target=_die, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    judge, asked = counting()
    judges.collect(judge, [toy.request(i) for i in range(6)], store(tmp_path))
    assert asked == ["r3", "r4", "r5"]


def _die(folder):
    stream = judges.stream(oracle.oracle(), (toy.request(i) for i in range(6)), store(folder))
    for _ in range(3):
        next(stream)
    os.kill(os.getpid(), signal.SIGKILL)
