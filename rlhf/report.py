"""Write what a run did as one HTML file: `python -m rlhf.report run=DIR [also=DIR2] out=FILE.html`.

Curves, dropped groups, evaluations, settings, and the rollouts with their images; docs/report.md shows it. A run and a
pipeline write theirs when they end.
"""

import sys

from conf.cli import launch
from rlhf.reporting.config import ReportPageConfig


def run(config: ReportPageConfig, resolved: str) -> None:
    """Write the page, and say where it is and how much of the run it holds."""
    from rlhf.reporting.page import write_report

    path, browser = write_report(config)
    size = path.stat().st_size / 2**20
    held = f", {browser.num_shown} of {browser.num_found} completions" if browser.num_found else ""
    print(f"report: {path} ({size:.1f} MiB{held})", flush=True)


def main() -> int:
    return launch("report", ReportPageConfig, run)


if __name__ == "__main__":
    sys.exit(main())
