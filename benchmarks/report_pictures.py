"""The pictures of docs/report.md: `python -m benchmarks.report_pictures RUN FOLDER` opens a run's report in Chromium.

Prints the seconds that the page took to open and its size.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from rlhf.reporting.config import ReportPageConfig
from rlhf.reporting.page import write_report

_SIZE = (1280, 860)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report_pictures", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run or pipeline of RL")
    parser.add_argument("folder", type=Path, help="folder for report-overview.png and report-rollouts.png")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        page, browser = write_report(ReportPageConfig(run=str(args.run), out=str(Path(scratch) / "report.html")))
        seconds = take(page, args.folder)
        size = page.stat().st_size
    print(json.dumps({"opened_s": seconds, "bytes": size, "rollouts": browser.num_shown, "found": browser.num_found}))


def take(report: Path, folder: Path) -> float:
    """Write both pictures; returns the seconds until the page had opened."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        raise SystemExit("expected Chromium, found none; apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": _SIZE[0], "height": _SIZE[1]}, color_scheme="light")
        page.goto(report.as_uri())
        opened = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd") / 1000
        page.screenshot(path=folder / "report-overview.png")
        page.emulate_media(color_scheme="dark")
        if page.locator(".fall").count():
            page.locator(".fall").first.click()
        else:
            page.evaluate("document.getElementById('rollouts').scrollIntoView()")
        page.mouse.move(_SIZE[0] - 4, _SIZE[1] - 4)
        page.screenshot(path=folder / "report-rollouts.png")
        chromium.close()
    return round(opened, 3)


if __name__ == "__main__":
    main()
