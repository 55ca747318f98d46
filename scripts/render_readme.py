"""Put the tables of kept reports into README.md and hub_cards/reports/README.md; no number there is typed by hand.

    python scripts/render_readme.py            write
    python scripts/render_readme.py --check    fail if a page is not what the reports say

A block from ``<!-- results:NAME -->`` to ``<!-- end -->`` is rendered from ``hub_cards/reports/NAME.json``, the block
``glance`` from all of them that rank ``pulse-fused``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import readme_studies
from readme_runs import glance, table

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "hub_cards" / "reports"
PAGES = (ROOT / "README.md", REPORTS / "README.md")
BLOCK = re.compile(r"(<!-- results:([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def kept_report(name: str) -> dict[str, Any]:
    """One of ``hub_cards/reports/``."""
    report: dict[str, Any] = json.loads((REPORTS / f"{name}.json").read_text(encoding="utf-8"))
    return report


SHAPES = {
    "real-rationales": readme_studies.real_rationales,
    "outside-judge": readme_studies.outside_judge,
    "question-answering": readme_studies.question_answering,
    "control": readme_studies.control,
    "leak-worth": readme_studies.leak_worth,
    "steering": readme_studies.steering,
    "protocols": readme_studies.protocols,
    "ablations": readme_studies.ablations,
    "cross-domain": readme_studies.cross_domain,
    "plain-controls": readme_studies.plain_controls,
}
"""The shape of a block by how its name begins; all others are tables of a run."""


def render(text: str) -> str:
    """A page with every block rendered anew."""

    def block(match: re.Match[str]) -> str:
        if match[2] == "glance":
            reports = {path.stem: kept_report(path.stem) for path in REPORTS.glob("*.json")}
            return f"{match[1]}{glance(reports)}\n{match[3]}"
        report = kept_report(match[2])
        shape = next((shape for start, shape in SHAPES.items() if match[2].startswith(start)), table)
        return f"{match[1]}{shape(report)}\n{match[3]}"

    return BLOCK.sub(block, text)


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    for page in PAGES:
        found = page.read_text(encoding="utf-8")
        wanted = render(found)
        if arguments.check and wanted != found:
            name = page.relative_to(ROOT)
            sys.exit(f"{name} differs from the kept reports; run python scripts/render_readme.py")
        if wanted != found:
            page.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
