"""The page in a real browser; skipped where Chromium or its driver is not installed."""

import shutil

import pytest

from rubric_jax import report
from tests.report import toy

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
support = pytest.importorskip("selenium.webdriver.support.ui", reason="selenium is not installed")

WIDE, NARROW = (1440, 1000), (390, 844)
EVIL = '</script><img src=x onerror="document.title = 1"><b>bold</b>'


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = toy.write(tmp_path_factory.mktemp("report") / "run", instances=40, rounds=1, steps=20)
    path = folder / "round_1" / "samples.jsonl"
    first, rest = path.read_text().split("\n", 1)
    first = first.replace('"text": "', f'"text": "{EVIL}'.replace('"doc', '\\"doc'), 1)
    path.write_text(first.replace('= 1">', '= 1\\">', 1) + "\n" + rest)
    return report.write(folder).as_uri()


@pytest.fixture(scope="module")
def driver():
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    service = shutil.which("chromedriver")
    if not chromium or not service:
        pytest.skip("no Chromium with chromedriver; apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
    yield driver
    driver.quit()


@pytest.fixture(params=[WIDE, NARROW], ids=["wide", "narrow"])
def opened(request, driver, address):
    width, height = request.param
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get("about:blank")
    driver.get(address)
    # On a busy machine `get` was seen to return before the page's script had run.
    ready = support.WebDriverWait(driver, 60)
    ready.until(lambda driver: len(all_of(driver, "#list .item")) == 40)
    yield driver
    assert driver.get_log("browser") == []


def all_of(driver, selector):
    return driver.find_elements("css selector", selector)


def first(driver, selector):
    return driver.find_element("css selector", selector)


def click(driver, element):
    """Items take their height when they come into sight: bring it there before aiming."""
    driver.execute_async_script(
        "const [element, done] = arguments; element.scrollIntoView({block: 'center'});"
        "requestAnimationFrame(() => requestAnimationFrame(done))",
        element,
    )
    element.click()


def choose(driver, select, value):
    option = f"#{select} option[value='{value}']"
    first(driver, option).click()


def matches(driver):
    return first(driver, "#matches").text


def keys(driver, element, *pressed):
    from selenium.webdriver.common import keys

    element.send_keys(*(getattr(keys.Keys, name, name) for name in pressed))


def test_it_opens_without_horizontal_scrolling(opened):
    script = "const n = performance.getEntriesByType('navigation')[0]; return n.loadEventEnd"
    print(f"opened in {opened.execute_script(script):.0f} ms")
    assert matches(opened) == "40 of 40 match"
    assert len(all_of(opened, "#list .item")) == 40
    for text in opened.find_elements("css selector", "details"):
        opened.execute_script("arguments[0].open = true", text)
    sizes = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    content, window = opened.execute_script(sizes)
    assert content <= window


def test_a_cell_says_its_score_criterion_and_reason(opened):
    click(opened, all_of(opened, "#list .item")[2])
    assert opened.execute_script("return location.hash") == "#instance=scenes-0-2"
    data = "return JSON.parse(document.getElementById('data').textContent)"
    data = opened.execute_script(data)
    one = data["instances"][2]
    criteria = data["rubrics"][one["rubric"]]["criteria"]
    row = first(opened, ".heat tbody tr")
    number = int(row.find_element("css selector", "th a").text.removeprefix("#")) - 1
    response = one["responses"][number]
    assert response["total"] == max(r["total"] for r in one["responses"] if r["total"] is not None)
    cells = row.find_elements("css selector", "td.cell")
    assert [float(cell.text) for cell in cells] == response["scores"]
    assert criteria[0]["text"] in cells[0].get_attribute("title")
    opened.execute_script("arguments[0].focus()", cells[0])
    keys(opened, cells[0], "ARROW_RIGHT")
    assert criteria[1]["text"] in first(opened, ".inspect").text
    assert response["reasons"][1] in first(opened, ".inspect").text


def test_search_filters_and_their_count(opened):
    data = "return JSON.parse(document.getElementById('data').textContent).instances"
    instances = opened.execute_script(data)
    none = sum(not one["pairs"] for one in instances)
    choose(opened, "paired", "none")
    assert matches(opened) == f"{none} of 40 match"
    choose(opened, "paired", "")
    whole = sum(all(r["status"] == "scored" for r in one["responses"]) for one in instances)
    choose(opened, "status", "all scored")
    assert matches(opened) == f"{whole} of 40 match"
    first(opened, "button[type=reset]").click()
    keys(opened, first(opened, "#search"), "where is")
    found = sum("where is" in one["text"] for one in instances)
    assert matches(opened) == f"{found} of 40 match"
    assert {mark.text for mark in all_of(opened, ".question mark")} == {"where is"}
    keys(opened, first(opened, "#search"), " no such words")
    assert matches(opened) == "0 of 40 match"
    assert "Nothing matches" in first(opened, "#list").text


def test_a_range_of_rewards_and_an_order(opened):
    choose(opened, "axis", "correctness")
    choose(opened, "statistic", "low")
    keys(opened, first(opened, "#from"), "1")
    data = "return JSON.parse(document.getElementById('data').textContent).instances"
    lowest = [
        min((r["axes"]["correctness"] for r in one["responses"] if r["axes"]), default=None)
        for one in opened.execute_script(data)
    ]
    assert matches(opened) == f"{lowest.count(1)} of 40 match"
    first(opened, "button[type=reset]").click()
    choose(opened, "order", "up")
    means = [text.text for text in all_of(opened, "#list .line > span:last-child")]
    means = [float(text.split()[1]) for text in means if text.startswith("mean")]
    assert means == sorted(means)


def test_the_arrow_keys_move_and_the_address_leads_back(opened, address):
    keys(opened, first(opened, "#list"), "ARROW_DOWN", "ARROW_DOWN", "ARROW_UP")
    assert opened.execute_script("return location.hash") == "#instance=scenes-0-1"
    assert first(opened, "[aria-selected=true]").get_attribute("id") == "item-1"
    opened.get("about:blank")
    opened.get(f"{address}#instance=scenes-0-7")
    assert first(opened, ".bar-top span").text == "scenes-0-7"


def test_chosen_and_rejected_are_marked_in_words(opened):
    choose(opened, "paired", "some")
    tags = {tag.text for tag in all_of(opened, ".heat .tag")}
    assert {"chosen", "rejected"} <= tags


def test_markup_in_a_response_is_shown_and_not_run(opened):
    opened.execute_script("location.hash = '#instance=scenes-0-0'")
    texts = [said.text for said in all_of(opened, ".response .said")]
    assert any(text.startswith(EVIL) for text in texts)
    assert all_of(opened, ".response .said b, .response .said img") == []
    assert opened.title == "run · rubric_jax report"
