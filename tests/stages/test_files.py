import json

import pytest

from rubric_jax.stages import files


def _file(path, **settings):
    return files.File(str(path), "sample", {"count": 8, **settings}, {"policy": "abc"})


def test_a_finished_file_is_known_again(tmp_path):
    file = _file(tmp_path / "samples.jsonl")
    assert not files.begin(file)
    files.write_whole(file, [{"id": "a"}], {"rows": 1})
    assert files.begin(file)
    assert files.read_manifest(file.path)["counts"] == {"rows": 1}
    assert [row for _, row in files.lines(file.path, made_by="sample")] == [{"id": "a"}]


def test_other_settings_inputs_or_stages_are_refused_and_shown(tmp_path):
    path = tmp_path / "samples.jsonl"
    files.begin(_file(path))
    with pytest.raises(ValueError, match=r"made differently:\n  config.count: 8 -> 4\n"):
        files.begin(_file(path, count=4))
    with pytest.raises(ValueError, match=r"inputs.policy: abc -> xyz"):
        files.begin(files.File(str(path), "sample", {"count": 8}, {"policy": "xyz"}))
    with pytest.raises(ValueError, match="stage: 'sample' -> 'judge'"):
        files.begin(files.File(str(path), "judge", {"count": 8}, {"policy": "abc"}))


def test_a_file_without_manifest_is_left_alone(tmp_path):
    (tmp_path / "samples.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"no .*samples.json says how it was made"):
        files.begin(_file(tmp_path / "samples.jsonl"))


def test_half_a_line_is_cut_off_and_the_rest_kept(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b'{"id": "a"}\n{"id": "b"')
    assert [row["id"] for _, row in files.lines(str(path), made_by="sample")] == ["a"]
    appender = files.Appender(str(path))
    appender.add([{"id": "é \ud83d"}])  # half of a pair, as a tokenizer may give
    appender.close()
    found = [row["id"] for _, row in files.lines(str(path), made_by="sample")]
    assert found == ["a", "é \ud83d"]


def test_a_half_line_that_is_left_out_is_named(tmp_path, caplog):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b'{"id": "a"}\n{"id": "b"')
    with caplog.at_level("WARNING", logger="absl"):
        list(files.lines(str(path), made_by="sample"))
    assert f"{path}:2: half-written last line" in caplog.text


def test_a_whole_last_line_without_its_newline_counts(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b'{"id": "a"}\n{"id": "b"}')  # as an editor may leave it
    assert [row["id"] for _, row in files.lines(str(path), made_by="sample")] == ["a", "b"]
    appender = files.Appender(str(path))
    appender.add([{"id": "c"}])
    appender.close()
    assert path.read_bytes() == b'{"id": "a"}\n{"id": "b"}\n{"id": "c"}\n'
    path.write_bytes(b'{"id": "a"}')
    files.Appender(str(path)).close()
    assert path.read_bytes() == b'{"id": "a"}\n'


def test_half_a_surrogate_pair_survives_writing_and_reading(tmp_path):
    file = _file(tmp_path / "samples.jsonl")
    files.write_whole(file, [{"text": "\ud83d half"}], {"such": "\ud83d"})
    ((_, row),) = files.lines(file.path, made_by="sample")
    assert row == {"text": "\ud83d half"}
    assert files.read_manifest(file.path)["counts"] == {"such": "\ud83d"}


def test_a_long_half_line_is_cut_off_too(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b'{"id": "a"}\n' + b"x" * 200_000)
    files.Appender(str(path)).close()
    assert path.read_bytes() == b'{"id": "a"}\n'
    path.write_bytes(b"x" * 200_000)
    files.Appender(str(path)).close()
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("text", "message"),
    [("nonsense\n", r"samples.jsonl:1: not JSON"), ("[1]\n", r"samples.jsonl:1: list; it must")],
)
def test_broken_lines_name_file_and_line(tmp_path, text, message):
    path = tmp_path / "samples.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        list(files.lines(str(path), made_by="sample"))


def test_missing_and_unfinished_inputs_name_the_command(tmp_path):
    path = tmp_path / "samples.jsonl"
    with pytest.raises(ValueError, match=r"No .*samples.jsonl; make it with the command `sample`"):
        list(files.lines(str(path), made_by="sample"))
    files.begin(_file(path))
    with pytest.raises(ValueError, match=r"is not finished; run the command `sample`"):
        files.need_finished(str(path), made_by="sample")


def test_a_broken_manifest_is_an_error_that_says_what_to_remove(tmp_path):
    (tmp_path / "samples.json").write_text("{")
    with pytest.raises(ValueError, match=r"samples.json is not JSON .*remove it"):
        files.begin(_file(tmp_path / "samples.jsonl"))


def test_a_field_of_another_type_names_its_line():
    with pytest.raises(ValueError, match="f:3: id: found 7; it must be of type str"):
        files.field("f:3", {"id": 7}, "id", str)


def test_the_manifest_says_what_was_made_from_what(tmp_path):
    file = _file(tmp_path / "samples.jsonl")
    files.begin(file)
    value = json.loads((tmp_path / "samples.json").read_text())
    assert value["stage"] == "sample"
    assert not value["finished"]
    assert value["config"] == {"count": 8}
    assert value["inputs"] == {"policy": "abc"}
