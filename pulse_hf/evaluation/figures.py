"""The report's charts: drawn from ``report.json`` alone, same report, same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pulse_hf.evaluation.systems import OURS

__all__ = ["draw_figures"]

_BLUE, _GREY, _INK = "#2a6f97", "#a9b4be", "#22303c"


def draw_figures(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw HR@1 of every system and, where measured, the worth of a reason.

    Args:
        report: The content of ``report.json``.
        folder: Where the PNG files go.

    Returns:
        The files written.
    """
    synthetic = " (synthetic world)" if report["protocol"].get("synthetic") else ""
    users = report["protocol"]["users"]
    drawn = [_bars(report["systems"], f"HR@1, {users:,} users{synthetic}", folder / "hr_at_1.png")]
    worth = report.get("worth_of_a_reason")
    if worth:
        title = f"Worth of a reason: HR@1 of pulse, {users:,} users{synthetic}"
        drawn.append(_bars(worth["variants"], title, folder / "worth_of_a_reason.png"))
    return drawn


def _bars(systems: Mapping[str, Mapping[str, Any]], title: str, path: Path) -> Path:
    ordered = sorted(systems.items(), key=lambda pair: (pair[1]["hr@1"]["value"], pair[0]))
    rows = {name: entry["hr@1"] for name, entry in ordered}
    # The object interface, not pyplot: no global state, no display, no dependence on a user's matplotlibrc.
    from matplotlib import rc_context, rcdefaults
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context():
        rcdefaults()
        figure = Figure(figsize=(7, 0.9 + 0.36 * len(rows)), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        values = [row["value"] for row in rows.values()]
        below = [row["value"] - row["low"] for row in rows.values()]
        above = [row["high"] - row["value"] for row in rows.values()]
        colours = [_BLUE if name in OURS or name.startswith("own") else _GREY for name in rows]
        axes.barh(list(rows), values, xerr=[below, above], color=colours, ecolor=_INK, capsize=3, height=0.7)
        for place, (value, row) in enumerate(zip(values, rows.values(), strict=True)):
            axes.text(row["high"] + 0.012, place, f"{value:.3f}", va="center", color=_INK, fontsize=9)
        axes.set_xlim(0, min(1.1, max(row["high"] for row in rows.values()) + 0.12))
        axes.set_xlabel("bars: mean over users, lines: 95 % bootstrap interval", fontsize=8)
        axes.set_title(title, loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        # No software name or date in the file: equal reports give equal bytes.
        figure.savefig(path, format="png", metadata={"Software": None})
    return path
