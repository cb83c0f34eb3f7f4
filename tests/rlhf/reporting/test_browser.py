"""The report in a real browser: one headless Chromium, which all tests of this file share."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlhf.reporting.config import ReportPageConfig
from rlhf.reporting.page import write_report
from tests.conftest import require_extra
from tests.rlhf.reporting.folders import FALL, write_lines, write_pipeline, write_run

EVIL = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'>{{7*7}}"


@pytest.fixture(scope="module")
def chromium():
    """The browser. It is the module's and not the session's, because playwright keeps an event loop open meanwhile."""
    require_extra("dev", "playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        reason = "there is no browser: apt-get install chromium"
        pytest.fail(f"REQUIRE_EXTRAS=1, but {reason}") if os.environ.get("REQUIRE_EXTRAS") == "1" else pytest.skip(
            reason
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The report of a pipeline."""
    folder = write_pipeline(tmp_path_factory.mktemp("run") / "pipe")
    return write_report(ReportPageConfig(run=str(folder)))[0]


@contextmanager
def opened(chromium, path: Path, **settings) -> Iterator:
    """The page of a file. Whatever the console or the page itself complains about is a failure."""
    context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
    page = context.new_page()
    page.set_default_timeout(15_000)
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: complaints.append(asked.url) if asked.url.startswith("http") else None)
    page.goto(path.as_uri())
    try:
        yield page
        assert not complaints
    finally:
        context.close()


def rows(page) -> list[str]:
    return page.locator("#list li").all_inner_texts()


def test_three_clicks_lead_from_a_fall_to_rollouts_with_images_and_to_the_reasons_of_drops(chromium, report):
    with opened(chromium, report) as page:
        assert page.locator(".fall").first.inner_text().startswith(f"step {FALL} accuracy")
        page.locator(".fall").first.click()  # the first click: the step, and its rollouts
        assert page.locator("#found").inner_text().startswith("16 of 129 completions")
        assert page.locator("#list li img").count() == 16
        assert page.evaluate("[...document.querySelectorAll('#list img')].every(one => one.naturalWidth === 32)")
        assert all(f"step {FALL}" in row for row in rows(page))
        page.locator("#list li").nth(2).click()  # the second: one of them in full
        assert page.locator("#detail .pictures img").count() == 1
        assert f"step {FALL}, group 20, sample 2" in page.locator("#detail").inner_text()
        page.locator(".drop[data-end='all_wrong']").click()  # the third: a reason of drops, and its groups
        assert "every completion of the group was wrong" in page.locator(".drop[data-end='all_wrong']").inner_text()
        assert (
            page.locator("#found")
            .inner_text()
            .startswith("32 of 129 completions, 0.0 % right; dropped groups: all_wrong 8")
        )
        assert "group dropped: all_wrong" in page.locator("#detail").inner_text()


def test_filters_combine_and_are_cleared(chromium, report):
    with opened(chromium, report) as page:

        def count() -> int:
            page.wait_for_timeout(200)  # typing is answered after a moment
            return int(page.locator("#found").inner_text().split()[0])

        page.fill("#f-step", "2")
        assert count() == 16
        page.select_option("#f-verdict", label=page.locator("#f-verdict option", has_text="wrong").inner_text())
        wrong = count()
        assert 0 < wrong < 16 and all("wrong" in row for row in rows(page)[:5])
        page.fill("#f-least", "0.5")
        assert count() == 0 and "No completion passes" in page.locator("#detail").inner_text()
        page.click("#f-clear")
        assert count() == 129
        page.fill("#f-most", "0.2")
        low = count()
        assert wrong <= low < 129
        page.click("#f-clear")
        page.fill("#f-text", "question 31?")
        assert count() == 4 and "Question 31?" in page.locator("#detail").inner_text()
        page.fill("#f-text", "word95 word96")  # in a completion
        assert 0 < count() < 129
        page.click("#f-clear")
        page.select_option("#f-mode", label="direct (1)")
        assert count() == 1 and "charts, t1" in page.locator("#detail").inner_text()
        page.click("#f-clear")
        page.select_option("#f-drop", label="trained (96)")
        assert count() == 96
        page.select_option("#f-order", "reward")
        assert count() == 96 and "wrong" in rows(page)[0]


def test_a_rollout_shows_all_that_is_known_of_it_with_its_thought_folded(chromium, report):
    with opened(chromium, report) as page:
        page.fill("#f-step", "1")
        page.wait_for_timeout(200)
        detail = page.locator("#detail")
        assert not detail.locator("details").evaluate("one => one.open")
        assert not detail.get_by_text("word0 word1").is_visible()
        detail.locator("summary").click()
        assert detail.get_by_text("word0 word1").is_visible()
        text = detail.inner_text()
        for part in ("Question 0?", "reference", "answer", "format", "advantage", "0.5", "\\boxed{"):
            assert part in text
        page.locator("#detail .siblings button").nth(3).click()
        assert "sample 3" in detail.inner_text() and "cut off" in detail.inner_text()
        assert detail.locator("details").evaluate("one => one.open")  # it stays as it was


def test_the_keyboard_leads_through_the_rollouts(chromium, report):
    with opened(chromium, report) as page:
        page.locator(".fall").first.click()
        keys = page.keyboard
        chosen = page.locator("#list li[aria-selected='true']")
        for key, expected in (("j", "sample 1"), ("j", "sample 2"), ("k", "sample 1"), ("ArrowDown", "sample 2")):
            keys.press(key)
            assert expected in chosen.inner_text()
        keys.press("t")
        assert page.locator("#detail details").evaluate("one => one.open")
        keys.press("c")
        keys.press("l")
        assert page.locator("#page-at").inner_text() == "page 2 of 6"
        keys.press("h")
        assert page.locator("#page-at").inner_text() == "page 1 of 6"
        keys.press("/")
        keys.type("jjj")
        page.wait_for_timeout(200)
        assert page.locator("#f-text").input_value() == "jjj" and page.locator("#list li").count() == 0
        keys.press("Escape")
        keys.press("c")
        assert page.locator("#found").inner_text().startswith("129 of 129")


def test_curves_show_values_and_lead_to_the_rollouts_of_a_step(chromium, report):
    with opened(chromium, report) as page:
        chart = page.locator(".chart", has_text="Reward and accuracy").locator("svg")
        assert page.locator("#charts .chart").count() >= 6
        chart.scroll_into_view_if_needed()
        box = chart.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.99, box["y"] + 50)
        assert "step 8" in page.locator(".tip").inner_text() and "accuracy" in page.locator(".tip").inner_text()
        page.mouse.click(box["x"] + box["width"] * 0.99, box["y"] + 50)
        assert page.locator("#f-step").input_value() == "8"
        chart.focus()
        page.keyboard.press("ArrowLeft")
        assert "step 7" in page.locator(".tip").inner_text()
        page.keyboard.press("Enter")
        assert page.locator("#f-step").input_value() == "7"
        page.locator("#more-box summary").click()
        assert page.locator("#more-charts .chart", has_text="odd/metric").count() == 1
        page.locator("#stage-tabs button", has_text="sft").click()
        assert page.locator("#charts .chart", has_text="Loss").count() == 1


def test_light_and_dark(chromium, report):
    ground = "getComputedStyle(document.body).backgroundColor"
    with opened(chromium, report, color_scheme="dark") as page:
        dark = page.evaluate(ground)
        page.click("#theme")
        light = page.evaluate(ground)
    with opened(chromium, report, color_scheme="light") as page:
        assert (page.evaluate(ground), dark) == (light, "rgb(20, 22, 26)") and light != dark


def test_a_phone_needs_no_scrolling_to_the_side(chromium, report):
    with opened(chromium, report, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.locator(".fall").first.tap()
        page.locator("#list li").nth(1).tap()
        assert page.evaluate("Math.abs(document.getElementById('detail').getBoundingClientRect().top) < 200")


def test_no_text_of_a_model_runs_or_becomes_an_element(chromium, tmp_path):
    folder = write_run(tmp_path / "run", steps=2)
    lines = [json.loads(line) for line in (folder / "rollouts/step_000001.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {
            "text": f"<think>{EVIL}</think>{EVIL}",
            "thinking": EVIL,
            "question": EVIL,
            "reference": EVIL,
            "prompt_id": EVIL,
        }
        line |= {
            "answer": EVIL,
            "reason": EVIL,
            "parts": {EVIL: 1.0},
            "images": [EVIL],
            "dropped": EVIL,
            "status": EVIL,
        }
    write_lines(folder / "rollouts/step_000001.jsonl", lines)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    write_lines(folder / "metrics.jsonl", [{**row, EVIL: float(row["step"])} for row in metrics])
    out, _ = write_report(ReportPageConfig(run=str(folder), out=str(tmp_path / "page.html")))
    with opened(chromium, out) as page:
        page.fill("#f-step", "1")
        page.wait_for_timeout(200)
        page.locator("#detail summary").click()
        page.locator("#more-box summary").click()
        assert page.locator("#detail").inner_text().count(EVIL) >= 5
        assert page.locator("#more-charts h3").all_inner_texts().count(EVIL) == 1
        assert page.evaluate("window.hacked") is None and page.locator("#detail img, #list img[src='x']").count() == 0


@pytest.mark.parametrize("kind", ["no rollouts", "not begun"])
def test_folders_that_hold_little_make_a_whole_page(chromium, tmp_path, kind):
    (tmp_path / "run.json").write_text("{}")
    if kind == "no rollouts":
        write_lines(tmp_path / "metrics.jsonl", [{"step": n, "loss": 1.0 / n, "accuracy": 1 / n} for n in range(1, 5)])
    with opened(chromium, write_report(ReportPageConfig(run=str(tmp_path)))[0]) as page:
        assert "holds no rollouts" in page.locator("#rollouts").inner_text()
        assert page.locator("#charts .chart").count() == (2 if kind == "no rollouts" else 0)


def test_two_runs_side_by_side(chromium, tmp_path):
    here, there = write_run(tmp_path / "here"), write_run(tmp_path / "there", steps=5)
    (there / "config.yaml").write_text("algorithm:\n  name: gspo\n")
    with opened(chromium, write_report(ReportPageConfig(run=str(here), also=str(there)))[0]) as page:
        assert page.locator("path.there").count() > 5
        assert "gspo" in page.locator("#differences").inner_text()


@pytest.mark.slow
def test_fifty_thousand_rollouts_stay_usable(chromium, tmp_path):
    """Each of 62 steps has 816 rollouts, as of a run with large groups; the page opens within two seconds."""
    folder = write_run(tmp_path / "run", steps=62, groups=51, size=16, words=12)
    out, browser = write_report(ReportPageConfig(run=str(folder)))
    assert browser.num_shown == browser.num_found == 50_592 and out.stat().st_size < 15e6
    with opened(chromium, out) as page:
        opening = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
        assert opening < 2000 * (3 if os.getloadavg()[0] > 3 else 1)
        begin = time.monotonic()
        page.locator(".fall").first.click()
        assert page.locator("#list li").count() == 25
        page.click("#f-clear")
        page.fill("#f-text", "word96 word97")
        # The page forbids evaluated code, and so what waits in it for a function.
        page.locator("#found", has_text=re.compile(r"^(?!50592|816)")).wait_for()
        assert time.monotonic() - begin < 10
