import html.parser
import json
import re
import xml.etree.ElementTree

import pytest

from rubric_jax import report
from rubric_jax.report import collect, page, plots
from tests.report import toy

EVIL = '</script><script>document.title = "broken"</script><b>bold</b><!-- \u2028'
HALF = EVIL + " \ud800"  # half a surrogate pair, which has no UTF-8


class Elements(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.loads = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href") and not value.startswith(("#", "data:")):
                self.loads.append(value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "run"
    return toy.write(path, instances=12, responses=4, steps=120)


@pytest.fixture(scope="module")
def text(folder):
    return report.write(folder).read_text("utf-8")


def data_of(text):
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(block[1])


def test_equal_input_gives_equal_bytes_at_the_place_asked_for(folder, tmp_path, text):
    path = report.write(folder, tmp_path / "new" / "page.html")
    assert path == tmp_path / "new" / "page.html"
    assert path.read_text("utf-8") == text


def test_the_page_loads_nothing_from_elsewhere_and_has_each_id_once(text):
    elements = Elements(text)
    assert elements.loads == []
    assert "url(http" not in text
    assert len(elements.ids) == len(set(elements.ids))


def test_every_section_of_a_full_run_is_there(text):
    sections = ("results", "training", "pairs", "verdicts", "weightings", "browser", "run")
    assert set(sections) <= set(Elements(text).ids)


def test_an_empty_run_still_gives_a_page(tmp_path):
    text = report.write(tmp_path).read_text("utf-8")
    assert "There are no samples yet." in text
    assert "No instances to show." in text
    assert not {"results", "training", "pairs", "verdicts"} & set(Elements(text).ids)


def test_texts_of_models_cannot_break_out_of_the_page(tmp_path, folder, text):
    run = tmp_path / "run"
    rubric = {"id": "a", "text": EVIL, "kind": "essential", "weight": 1, "axis": EVIL}
    rubric = {"key": "k", "source": EVIL, "criteria": [rubric]}
    said = {"status": EVIL, "scores": {"a": 1}, "reasons": {"a": EVIL}, "problems": [EVIL]}
    counts = {"groups": 1, "skipped": {EVIL: 1}, EVIL: 2}
    evaluation = {"policy": HALF, "measures": {HALF: {"mean": 1}}}
    metrics = {"step": 1, EVIL: 0.5}
    for name, row in {
        "config.json": {"model": {"checkpoint": EVIL}},
        "base/eval.json": evaluation,
        "round_1/samples.jsonl": {"id": EVIL, "responses": [{"text": HALF}]},
        "round_1/verdicts.jsonl": {"id": EVIL, "rubric": rubric, "verdicts": [said]},
        "round_1/pairs.json": {"stage": EVIL, "version": EVIL, "counts": counts},
        "round_1/train/metrics.jsonl": metrics,
    }.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(json.dumps(row) + "\n")
    found = report.write(run).read_text("utf-8")
    assert Elements(found).tags.count("script") == Elements(text).tags.count("script") == 2
    assert "<b>bold" not in found
    assert data_of(found)["instances"][0]["responses"][0]["text"] == HALF


def test_safe_json_reads_back_and_holds_no_markup():
    value = {"a": "</script>", "b": ["<!--", "&amp;", None, 0.5]}
    text = page.safe_json(value)
    assert json.loads(text) == value
    assert not set("<>&") & set(text)


def test_the_script_is_the_one_that_the_policy_admits(text):
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0]
    digest = page.base64.b64encode(page.hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_the_data_block_has_the_scores_in_the_order_of_the_criteria(folder, text):
    data = data_of(text)
    run = collect.collect(folder)
    one, shown = run.browser.instances[0], data["instances"][0]
    ids = [c["id"] for c in data["rubrics"][shown["rubric"]]["criteria"]]
    assert ids == [c.id for c in one.rubric.criteria]
    for response, said in zip(one.responses, shown["responses"], strict=True):
        assert said["scores"] == [response.scores.get(i) for i in ids]


def test_counts_of_the_run_stand_in_the_page(folder, text):
    run = collect.collect(folder)
    for pairs in run.pairs:
        assert f"{pairs.rows} rows of 12 groups; {sum(pairs.skipped.values())} groups gave" in text
    assert "12 of 12 instances of round 2" in text
    assert "3 of 12 instances of round 2, evenly spread" in page.render(
        collect.collect(folder, instances=3)
    )


def test_a_change_is_marked_only_where_intervals_are_apart():
    def evaluation(policy, *interval):
        return collect.Evaluation(policy, 10, {"reward": collect.Interval(*interval)})

    base = evaluation("base", 0.4, 0.3, 0.5)
    for after, verdict in (((0.7, 0.6, 0.8), "higher"), ((0.1, 0, 0.2), "lower")):
        measure = page.measures([base, evaluation("round_1", *after)])[0]
        assert measure.verdict == verdict
    measure = page.measures([base, evaluation("round_1", 0.55, 0.45, 0.65)])[0]
    assert measure.verdict == "overlap"
    assert measure.bars[1] == page.Bar(1, "round_1", 55.0, 45.0, 65.0)  # percent of 0 to 1


def test_numbers_have_three_digits_that_matter():
    values = (0.6134, 24.68, 5320.4, 0.0000012, 0, 1, -1.444, 1234567)
    shown = ["0.613", "24.7", "5320", "1.2e-06", "0", "1", "−1.44", "1.2e+06"]
    assert [page.number(value) for value in values] == shown
    assert [page.signed(value) for value in (0.5, -0.5, 0)] == ["+0.500", "−0.500", "0"]
    assert page.count(12345) == "12\u202f345"


def test_plots_are_well_formed_and_use_colours_of_the_page():
    svg = plots.curves([(1, False, [(1, 0.5), (2, 0.4)]), (1, True, [(2, 0.6)])], name='a "b" <c>')
    root = xml.etree.ElementTree.fromstring(svg)
    assert root.get("aria-label") == 'a "b" <c>'
    assert "var(--s1)" in svg
    assert not re.search(r"#0[1a]0[0-9a-f]0\d", svg)
    assert "<text" in svg


def test_long_curves_are_drawn_as_means_over_stretches():
    steps, values = plots._thinned([(i, float(i % 2)) for i in range(1, 1001)], 100)
    assert len(steps) == 100
    assert steps[0] == 5.5  # of 1 to 10
    assert set(values) == {0.5}


def test_the_front_is_what_no_other_point_dominates():
    def point(name, a, b):
        rewards = {"a": collect.Interval(a, a, a), "b": collect.Interval(b, b, b)}
        return collect.Point(name, "dpo", {}, rewards)

    points = [point("x", 1, 0), point("y", 0, 1), point("z", 0, 0.5), point("x again", 1, 0)]
    found = [p.name for p in points if plots.on_front(p, points, ("a", "b"))]
    assert found == ["x", "y", "x again"]
