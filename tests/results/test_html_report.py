"""The HTML report: its numbers are the tables', it loads nothing, and a browser does with it what it promises."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from m2d_bench import runs
from m2d_bench.cli import main
from m2d_bench.errors import UsageError
from m2d_bench.results import compare, summary
from m2d_bench.results.html_report.page import build, report
from m2d_bench.results.statistics import seed_means
from m2d_bench.runs import Score
from tests.test_runs import RUN, scored

CREATED = "2025-01-02 03:04:05+00:00"
HOSTILE = "</script><script>window.hacked=1</script><!--<img src=x onerror=window.hacked=1>{{rows}}&\"'"


def record(model="m2d_tiny", task="esc10", level=0.7, n_seeds=6, protocol="linear", metric="accuracy", **changes):
    scores = [
        Score(
            seed=seed,
            fold=fold,
            score=level + 0.01 * seed + 0.02 * int(fold),
            n_test=40,
            seconds=1.5,
            valid_score=level + 0.123456,
            chosen={"epoch": 10 + seed},
            others={"mAP": level / 2 + 0.01 * seed} if "other_metrics" in changes else {},
        )
        for seed in range(n_seeds)
        for fold in "12"
    ]
    others = changes.pop("other_metrics", [])
    run = replace(
        RUN,
        encoder={"name": model, "digest": hashlib.sha256(model.encode()).hexdigest()[:16]},
        task={**RUN.task, "name": task, "metric": metric, "other_metrics": others, "synthetic": task == "tones"},
        protocol=protocol,
        scores=tuple(scores),
        environment={"versions": {"torch": "2.6.0"}, "device": "cpu"},
        command=f"m2d-bench linear --model {model} --tasks {task}",
        created="2025-01-01T10:00:00+00:00",
    )
    return replace(run, **changes)


RECORDS = [
    record("m2d_vit_base-80x608p16x16-221006-mr7", "esc10", 0.80, other_metrics=["mAP"]),
    record("m2d_tiny", "esc10", 0.60, command=""),
    record("m2d_tiny", "esc10", 0.65, protocol="knn", n_seeds=1),
    record("m2d_tiny", "words", 0.20, metric="per"),
    record("m2d_vit_base-80x608p16x16-221006-mr7", "words", 0.10, metric="per"),
    record("m2d_tiny", "tones", 2.5, metric="d_prime"),
]


class Cells(HTMLParser):
    """Texts of the table's cells, row by row, and every attribute that could load something."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.loads, self.tags = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n")


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_table_without_javascript_has_the_numbers_of_the_summary():
    head, *rows = Cells(build(RECORDS, created=CREATED)).rows
    assert head == [
        *("Model", "Task", "Protocol", "Metric", "Mean ± 95% CI", "n", "Repeated", "Seconds", "Date", "Record")
    ]
    found = {(row[0], row[1], row[2], row[3].split()[0]): (row[4], row[5], row[7]) for row in rows}
    expected = {}
    for row in summary(RECORDS):
        interval = f"{row['mean']:.2f}" + ("" if row["ci95"] is None else f" ± {row['ci95']:.2f}")
        seconds = "" if row["seconds"] is None else str(row["seconds"])
        expected[row["model"], row["task"], row["protocol"], row["metric"]] = (interval, str(row["n"]), seconds)
    assert found == expected
    assert len(rows) == 7


def test_synthetic_tasks_units_directions_and_what_was_repeated_are_named():
    rows = {(row[1], row[0]): row for row in Cells(build(RECORDS, created=CREATED)).rows[1:]}
    assert rows["tones (synthetic)", "m2d_tiny"][3] == "d_prime ↑"
    assert rows["words", "m2d_tiny"][3] == "per (%) ↓"
    assert rows["words", "m2d_tiny"][6] == "initialisation"
    assert rows["words", "m2d_tiny"][8] == "2025-01-01"


def test_the_embedded_data_hold_every_raw_score_and_the_means_of_the_seeds():
    data = data_of(build(RECORDS, created=CREATED))
    for run, (encoder, task, settings, environment, seconds, command, schema, scores, classes) in zip(
        RECORDS, data["records"], strict=True
    ):
        values = [data["pool"][place] for place in (encoder, task, settings, environment)]
        assert values == [run.encoder, run.task, run.settings, run.environment]
        assert (seconds, command, schema) == (run.seconds, run.command, run.schema)
        assert classes == [["class", "n"]]
        assert [Score(**dict(zip(FIELDS, score, strict=True))) for score in scores] == list(run.scores)
    for row in data["rows"]:
        run, scale = RECORDS[row["record"]], 100 if row["unit"] == "%" else 1
        assert row["seeds"] == pytest.approx([scale * mean for mean in seed_means(run, row["metric"]).values()])
        assert row["key"] == run.key


FIELDS = ("seed", "fold", "score", "n_test", "valid_score", "chosen", "seconds", "others")


def test_hostile_names_stay_text():
    plain, hostile = record(), record(HOSTILE, protocol=HOSTILE, repeated=(HOSTILE,))
    page = build([hostile], created=HOSTILE, failures=[HOSTILE])
    tags = [tag for tag in Cells(page).tags if tag not in ("details", "summary", "ul", "li")]  # the notice's
    assert tags == Cells(build([plain], created=CREATED)).tags
    assert data_of(page)["rows"][0]["model"] == HOSTILE
    assert "<" not in re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert Cells(page).rows[1][0] == HOSTILE


def test_the_page_loads_nothing():
    page = build(RECORDS, created=CREATED)
    assert Cells(page).loads == ["#runs"]
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(|innerHTML|\beval\b", page)
    assert "default-src 'none'" in page


def test_the_same_arguments_give_the_same_page():
    assert build(RECORDS, created=CREATED) == build(list(RECORDS), created=CREATED)
    assert CREATED in build(RECORDS, created=CREATED)


def test_the_title_counts_and_the_extra_fragment_stands_before_the_table():
    page = build(RECORDS, created=CREATED, extra_html="<p>beside published numbers</p>")
    assert "<title>m2d-bench: 6 records, 2 models, 3 tasks</title>" in page
    assert page.index("<p>beside published numbers</p>") < page.index('<table id="table"')


def test_unfinished_records_and_tasks_of_several_versions_are_pointed_out():
    newer = replace(record(), task={**RUN.task, "version": 2})
    page = build([record(), newer, replace(record("m2d_half"), scores=scored(1, "1").scores)], created=CREATED)
    assert "Records without a finished seed: 1" in page
    assert "<li>m2d_half · esc10 · linear · " in page
    assert "differ between records, or are not known: 1</summary><ul><li>esc10</li></ul>" in page
    assert 'class="notice"' not in build(RECORDS, created=CREATED)


def test_no_records_are_refused(tmp_path):
    with pytest.raises(UsageError, match="No run records"):
        build([], created=CREATED)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UsageError, match=r"no run records(.|\n)*broken\.json: not a run record"):
        report((tmp_path,), output=tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_an_output_that_is_not_html_is_refused_before_any_reading(tmp_path):
    with pytest.raises(UsageError, match=r"table\.html"):
        report((tmp_path / "nowhere",), output=tmp_path / "table.csv")


def test_the_verb_writes_the_file_whole_and_names_what_it_could_not_read(tmp_path):
    runs.add(record(), tmp_path / "runs")
    runs.add(record("m2d_other"), tmp_path / "runs")
    (tmp_path / "runs" / "broken.json").write_text("{")
    path = tmp_path / "new" / "report.html"
    output = report((tmp_path / "runs", tmp_path / "runs"), output=path)
    assert output.text == f"{path}: 2 records"
    assert len(output.failures) == 1
    page = path.read_text(encoding="utf-8")
    assert "broken.json: not a run record" in page
    assert "2 records, 2 models, 1 task" in page
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_failed_write_leaves_the_earlier_report(tmp_path, monkeypatch):
    runs.add(record(), tmp_path / "runs")
    path = tmp_path / "report.html"
    path.write_text("earlier")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        report((tmp_path / "runs",), output=path)
    assert path.read_text() == "earlier"
    assert not list(tmp_path.glob("*.tmp"))


# In a real browser


@pytest.fixture(scope="module")
def chromium():
    """Headless Chromium of this machine."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not on the PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, tmp_path):
    """A function that opens a report of these records; afterwards nothing may have gone wrong or over the network."""
    wrong, requests, contexts = [], [], []

    def visit(records, width=1280, scheme="light", scripts=True, **options):
        path = tmp_path / "report.html"
        path.write_text(build(records, created=CREATED, **options), encoding="utf-8")
        viewport = {"width": width, "height": 900}
        context = chromium.new_context(viewport=viewport, color_scheme=scheme, java_script_enabled=scripts)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert wrong == []
    assert set(requests) == {(tmp_path / "report.html").as_uri()}


def column(page, number):
    return page.locator(f"#rows > tr:not(.details):visible > :nth-child({number})").all_inner_texts()


def means(page):
    return [float(text.split()[0]) for text in column(page, 5)]


@pytest.mark.browser
def test_headers_sort_both_ways_by_mouse_and_keyboard(opened):
    page = opened(RECORDS)
    header = page.get_by_role("columnheader", name="Mean")
    header.get_by_role("button").click()
    assert means(page) == sorted(means(page))
    assert header.get_attribute("aria-sort") == "ascending"
    header.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert means(page) == sorted(means(page), reverse=True)
    assert header.get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="Model").click()
    assert column(page, 1) == sorted(column(page, 1))
    assert header.get_attribute("aria-sort") == "none"


@pytest.mark.browser
def test_what_has_no_value_is_sorted_last_both_ways(opened):
    page = opened(RECORDS)
    for _ in range(2):
        page.get_by_role("button", name="Seconds").click()
        assert column(page, 8)[-1] == ""  # the second metric of a record
        assert "" not in column(page, 8)[:-1]


@pytest.mark.browser
def test_filters_narrow_rows_count_and_plots(opened):
    page = opened(RECORDS)
    count = page.locator("#count")
    assert count.inner_text() == "7 of 7 rows"
    assert count.get_attribute("aria-live") == "polite"
    page.get_by_label("Text in any column").fill("VIT_BASE per")
    page.get_by_text("1 of 7 rows", exact=True).wait_for()
    assert column(page, 2) == ["words"]
    assert page.locator("#forest svg").count() == 1
    page.get_by_role("button", name="Clear").click()
    assert count.inner_text() == "7 of 7 rows"
    page.get_by_label("Task", exact=True).select_option("esc10")
    assert count.inner_text() == "4 of 7 rows"
    page.get_by_label("Protocol").select_option("knn")
    assert column(page, 3) == ["knn"]
    page.get_by_label("Model").select_option("m2d_vit_base-80x608p16x16-221006-mr7")
    assert count.inner_text() == "0 of 7 rows"
    assert page.locator("#forest svg").count() == 0


@pytest.mark.browser
def test_the_best_mean_is_bold_whatever_is_filtered(opened):
    page = opened(RECORDS)

    def bold():
        return page.locator("#rows tr:visible strong").all_inner_texts()

    by_key = {(row["model"][:8], row["task"], row["protocol"]): f"{row['mean']:.2f}" for row in summary(RECORDS)[1:]}
    ranks = compare(RECORDS)
    best = {
        (ranks.rows[n].model[:8], column.task, column.protocol)
        for (n, column), mark in ranks.marks.items()
        if mark.rank == 1
    }
    assert {by_key[key] for key in best if key in by_key} <= {text.split()[0] for text in bold()}
    before = bold()
    page.get_by_label("Model").select_option("m2d_tiny")
    assert set(bold()) < set(before)  # filtering ranks nothing anew


@pytest.mark.browser
def test_plots_have_a_description_an_interval_and_a_dot_a_seed(opened):
    page = opened(RECORDS)
    plot = page.get_by_role("img", name="Forest plot of words, per")
    assert plot.locator(".seed").count() == 12
    assert plot.locator(".interval").count() == 2
    assert "m2d_tiny, linear: 25.50 ± " in plot.locator("desc").text_content()
    single = page.locator("#forest svg", has_text="knn").locator(".row", has_text="knn")
    assert single.locator(".interval").count() == 0  # n = 1
    x = [float(mean.get_attribute("cx")) for mean in plot.locator(".mean").all()]
    assert x[0] < x[1]  # the lower error rate stands first, and further left


@pytest.mark.browser
def test_only_the_first_rows_are_drawn_and_the_page_says_so(opened):
    page = opened([record(f"model{number}") for number in range(70)])
    assert page.locator("#forest .row").count() == 60
    assert "first 60 of 70" in page.locator("#limit").inner_text()
    page.get_by_label("Text in any column").fill("model1")
    page.get_by_text("11 of 70 rows", exact=True).wait_for()
    assert page.locator("#forest .row").count() == 11
    assert page.locator("#limit").inner_text() == ""


@pytest.mark.browser
@pytest.mark.slow
def test_a_long_table_is_cut_until_all_rows_are_asked_for(opened):
    page = opened([record(f"model{number}") for number in range(510)])
    assert page.locator("#count").inner_text() == "510 of 510 rows; the table shows the first 500"
    assert len(column(page, 1)) == 500
    page.get_by_role("button", name="Model").click()
    page.get_by_role("button", name="Model").click()
    assert column(page, 1)[0] == "model509"  # sorted among all
    page.get_by_role("button", name="Show all rows").click()
    assert len(column(page, 1)) == 510
    assert page.locator("#count").inner_text() == "510 of 510 rows"
    assert not page.locator("#all").is_visible()


@pytest.mark.browser
def test_details_show_raw_scores_and_a_command_that_can_be_copied(opened):
    page = opened(RECORDS)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    run = RECORDS[3]
    button = page.get_by_role("button", name=f"Details of record {run.key}")
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    details = page.locator("tr.details")
    rows = [row.locator("td").all_inner_texts() for row in details.locator(".scores tbody tr").all()]
    assert [(row[0], row[1], float(row[2]), row[3]) for row in rows] == [
        (str(score.seed), score.fold, score.score, "40") for score in run.scores
    ]
    assert rows[2][4:6] == [str(run.scores[2].valid_score), "epoch=11"]
    text = details.inner_text()
    for expected in (run.encoder["digest"], run.key, "epochs", "versions.torch", "2.6.0"):
        assert expected in text
    assert details.locator("pre").inner_text() == run.command
    details.get_by_role("button", name="Copy").click()
    details.get_by_text("Copied.").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == run.command
    page.get_by_role("button", name="Mean").click()
    assert details.locator("xpath=preceding-sibling::tr[1]").inner_text().count(run.key) == 1  # they stay together
    button.click()
    assert details.count() == 0


@pytest.mark.browser
def test_details_of_several_labels_show_each_class_the_best_first(opened):
    wren = {"mAP": 0.8, "aucroc": 0.9, "d_prime": 1.8}
    run = record(metric="mAP")
    scores = [replace(score, per_class={"owl": {"mAP": 0.5}, HOSTILE: wren}) for score in run.scores]
    page = opened([replace(run, scores=tuple(scores))])
    page.get_by_role("button", name="Details of record").click()
    (table,) = page.get_by_role("region", name="Classes").all()
    assert table.locator("th").all_inner_texts() == ["class", "mAP (%)", "aucroc (%)", "d_prime", "n"]
    rows = [row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()]
    assert rows == [
        [HOSTILE, "80.00 ± 0.00", "90.00 ± 0.00", "1.80 ± 0.00", "6"],
        ["owl", "50.00 ± 0.00", "", "", "6"],
    ]


@pytest.mark.browser
def test_a_record_without_a_command_shows_none(opened):
    page = opened(RECORDS)
    page.get_by_role("button", name=f"Details of record {RECORDS[1].key}").click()
    assert page.locator("tr.details .scores tbody tr").count() == 12
    assert page.locator("tr.details pre").count() == 0
    assert page.locator("tr.details").get_by_role("button", name="Copy").count() == 0


@pytest.mark.browser
def test_hostile_names_do_not_run(opened):
    hostile = replace(record(HOSTILE, task=HOSTILE, protocol=HOSTILE, settings={HOSTILE: HOSTILE}), command=HOSTILE)
    page = opened([hostile, record()], failures=[HOSTILE])
    page.locator("button[aria-expanded]").first.click()
    page.locator("button[aria-expanded]").last.click()
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert HOSTILE in page.locator(".facts").all_inner_texts()[3] + page.locator(".facts").all_inner_texts()[8]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_scrolls_sideways_on_any_screen(opened, tmp_path, scheme):
    failures = ["runs/a-path-that-is-long/" * 8 + "broken.json: not a run record"]
    page = opened(RECORDS, scheme=scheme, failures=failures)
    page.locator("button[aria-expanded]").first.click()
    for width in (320, 360, 800, 1100, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 10_000


@pytest.mark.browser
def test_a_phone_shows_cards_whose_cells_are_named_and_within_the_screen(opened):
    page = opened(RECORDS, 360)
    cells = page.locator("#rows > tr").first.locator("td")
    names = cells.evaluate_all("cells => cells.map((cell) => getComputedStyle(cell, '::before').content)")
    headers = page.locator("#table > thead th").all_inner_texts()
    assert names == [f'"{header}"' for header in headers[1:]]
    for box in [cell.bounding_box() for cell in cells.all()]:
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360


CONTRAST = """() => {
  const light = (text) => {
    const parts = text.match(/[\\d.]+/g).slice(0, 3)
      .map((part) => part / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.querySelectorAll("body *")].filter((e) => e.getClientRects().length && e.textContent.trim())
    .map((e) => {
      const isSvg = e instanceof SVGElement;
      const [a, b] = [light(getComputedStyle(e)[isSvg ? "fill" : "color"]), light(behind(e))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), e.tagName];
    }).filter(([, tag]) => !["svg", "g", "circle", "path"].includes(tag));
}"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_a_contrast_of_4_5_in_both_schemes(opened, scheme):
    page = opened(RECORDS, scheme=scheme, failures=["broken"])
    page.locator("button[aria-expanded]").first.click()
    found = page.evaluate(CONTRAST)
    assert len(found) > 100
    assert min(found)[0] >= 4.5, min(found)


@pytest.mark.browser
def test_dark_mode_is_dark_and_paper_is_light(opened):
    page = opened(RECORDS)

    def background():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = background()
    page.emulate_media(color_scheme="dark")
    assert background() != light
    page.emulate_media(color_scheme="dark", media="print")
    assert background() == light


@pytest.mark.browser
def test_paper_has_no_filters_and_every_record_open(opened):
    page = opened(RECORDS, width=1000)  # of an A4 page across, within its margins
    assert page.locator("#filters").is_visible()
    page.emulate_media(media="print")
    page.locator("tr.details").last.wait_for()
    assert page.locator("tr.details").count() == 6  # one a record, not a row
    assert not page.locator("#filters").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1000
    page.emulate_media(media="screen")
    page.locator("tr.details").first.wait_for(state="detached")


@pytest.mark.browser
def test_the_keyboard_meets_the_skip_link_first_and_sees_where_it_is(opened):
    page = opened(RECORDS)
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the table")
    assert skip.bounding_box()["x"] >= 0
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "runs"


@pytest.mark.browser
def test_without_javascript_the_table_stands_and_nothing_pretends(opened):
    page = opened(RECORDS, scripts=False)
    assert len(column(page, 1)) == 7
    assert page.locator("button:visible, select:visible, input:visible").count() == 0
    assert page.get_by_text("need JavaScript").is_visible()


def test_a_published_table_stands_before_the_runs(tmp_path):
    runs.add(scored(42, "1", "2"), tmp_path / "runs")
    place = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "runs"), "-o", str(place), "--like", "m2dx-2024:III"]) == 0
    page = place.read_text()
    assert page.index("Beside the papers") < page.index("BEATs (SSL+labels)") < page.index('<h2 id="runs"')
    assert main(["report", str(tmp_path / "runs"), "-o", str(place), "--like", "m2dx:1"]) == 2


def test_runs_that_differ_in_a_setting_are_named_by_it():
    first, second = scored(42, "1", "2"), replace(scored(42, "1", "2"), settings={"epochs": 9})
    page = build([first, second], created="now")
    assert f"{RUN.encoder['name']}</th>" in page  # at the defaults
    assert f"{RUN.encoder['name']} (epochs=9)</th>" in page


def test_bold_is_the_ranking_of_the_comparison_tables():
    def run(name, score, share=1.0, protocol="linear"):
        scores = tuple(Score(seed=s, fold=f, score=score, n_test=9) for s in range(3) for f in "12")
        settings = {"epochs": 200, "train_fraction": share}
        encoder = {"name": name, "digest": f"{name:<16}"}
        return replace(RUN, encoder=encoder, scores=scores, settings=settings, protocol=protocol)

    records = [run("a", 0.5), run("b", 0.6), run("c", 0.9, protocol="logreg"), run("d", 0.4, share=0.1)]
    page = build(records, created="now")
    shown = zip("abcd", ("50.00", "60.00", "90.00", "40.00"), strict=True)
    bold = {model: f"<strong>{score}" in page for model, score in shown}
    assert bold == {"a": False, "b": True, "c": True, "d": True}
    table = compare(records)
    ranks = {table.rows[number].model[0]: mark.rank == 1 for (number, _), mark in table.marks.items()}
    assert ranks == bold
