"""The pool on disk: appended to, killed, read again."""

import fcntl
import multiprocessing
import os
import signal
import threading

import pytest

from rubric_jax.rubrics import pool, records


def rubric(key, text="Right."):
    value = {"id": "a", "text": text, "kind": "essential", "weight": 1, "axis": "correctness"}
    return records.parse({"key": key, "criteria": [value]}, where="test")


def test_what_is_appended_is_loaded_in_order(tmp_path):
    path = str(tmp_path / "sub" / "pool.jsonl")
    assert pool.append(path, [rubric("b"), rubric("a")]) == 2
    found = pool.load(path)
    assert list(found.rubrics) == ["b", "a"]
    assert found.of("a") == rubric("a")
    assert (found.dropped, found.repeated) == (0, 0)


def test_no_file_is_an_empty_pool(tmp_path):
    assert pool.load(str(tmp_path / "none.jsonl")).rubrics == {}


def test_an_instance_gets_one_rubric(tmp_path):
    path = str(tmp_path / "pool.jsonl")
    assert pool.append(path, [rubric("a"), rubric("a", "Other.")]) == 1
    assert pool.append(path, [rubric("a", "Third."), rubric("b")]) == 1
    assert pool.load(path).of("a") == rubric("a")


@pytest.mark.parametrize("cut", [1, 2, 10, 60])
def test_a_half_written_last_line_is_dropped_and_counted_then_cut_off(tmp_path, cut):
    path = tmp_path / "pool.jsonl"
    pool.append(str(path), [rubric("a"), rubric("ü", "Grün.")])
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[1][:-cut])
    found = pool.load(str(path))
    assert (list(found.rubrics), found.dropped) == (["a", "ü"], 1)
    assert pool.append(str(path), [rubric("c")]) == 1
    found = pool.load(str(path))
    assert (list(found.rubrics), found.dropped) == (["a", "ü", "c"], 0)


def test_a_line_cut_inside_a_character_is_half_written_too(tmp_path):
    path = tmp_path / "pool.jsonl"
    pool.append(str(path), [rubric("a")])
    path.write_bytes(path.read_bytes() + '{"key": "ü'.encode()[:-1])
    assert pool.load(str(path)).dropped == 1


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text(records.to_json(rubric("a")))
    assert list(pool.load(str(path)).rubrics) == ["a"]
    pool.append(str(path), [rubric("b")])
    assert list(pool.load(str(path)).rubrics) == ["a", "b"]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text(f"{records.to_json(rubric('a'))}\n{{oops\n{records.to_json(rubric('b'))}\n")
    with pytest.raises(ValueError, match=r"pool.jsonl:2: not a line of JSON .*mend or remove it"):
        pool.load(str(path))


def test_an_unknown_axis_is_named_with_its_line(tmp_path):
    path = str(tmp_path / "pool.jsonl")
    pool.append(path, [rubric("a")])
    with pytest.raises(ValueError, match=r"jsonl:1: criteria\[0\].axis: .*Did you mean 'correct'"):
        pool.load(path, axes=("correct", "format"))


def test_two_rubrics_of_one_instance_are_refused_and_a_repeated_one_is_counted(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text(f"{records.to_json(rubric('a'))}\n" * 2)
    assert pool.load(str(path)).repeated == 1
    with path.open("a") as file:
        file.write(records.to_json(rubric("a", "Other.")) + "\n")
    with pytest.raises(ValueError, match=r"jsonl:3: key: another rubric .*jsonl:1; remove one"):
        pool.load(str(path))


def test_a_pool_of_other_instances_says_so(tmp_path):
    path = str(tmp_path / "pool.jsonl")
    pool.append(path, [rubric("a")])
    with pytest.raises(ValueError, match=r"No rubric for the instance b .* belong together\?"):
        pool.load(path).of("b")


def test_an_unwritable_pool_says_so(tmp_path):
    with pytest.raises(ValueError, match="Cannot write the rubric pool"):
        pool.append(str(tmp_path), [rubric("a")])


def test_an_append_waits_for_another_to_finish(tmp_path):
    path = tmp_path / "pool.jsonl"
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = threading.Thread(target=pool.append, args=(str(path), [rubric("a")]))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        other.write(records.to_json(rubric("a", "Other.")).encode() + b"\n")
    waiting.join()
    assert pool.load(str(path)).of("a") == rubric("a", "Other.")


def test_several_processes_fill_one_pool_without_repeats(tmp_path):
    path = str(tmp_path / "pool.jsonl")
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_fill, args=(path, n)) for n in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    found = pool.load(path)
    assert sorted(found.rubrics) == sorted(str(i) for i in range(40))
    assert (found.dropped, found.repeated) == (0, 0)


def _fill(path, n):
    pool.append(path, (rubric(str((7 * n + i) % 40)) for i in range(40)))


def test_a_killed_writer_loses_only_what_it_had_not_been_given(tmp_path):
    path = str(tmp_path / "pool.jsonl")
    child = multiprocessing.get_context("spawn").Process(target=_die, args=(path,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert list(pool.load(path).rubrics) == ["0", "1", "2"]


def _die(path):
    def rubrics():
        for i in range(3):
            yield rubric(str(i))
        os.kill(os.getpid(), signal.SIGKILL)

    pool.append(path, rubrics())
