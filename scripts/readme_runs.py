"""The tables of runs for :mod:`render_readme`: all reports at a glance, one report in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pulse_hf.evaluation.comparisons import against_the_strongest, strongest_baseline, what_thoughts_add
from pulse_hf.evaluation.report import p_value
from pulse_hf.hub import cards


def glance(reports: Mapping[str, dict[str, Any]]) -> str:
    """One row for each of the reports that is of a run: the strongest baseline, ours, and ``pulse-fused`` above it."""
    lines = [
        "HR@1 of 1 positive and 9 uniform negatives, all audits passed; differences are paired over the same users "
        "(95 %, p by Holm within a report):",
        "",
        *header(
            "data", "users", "seeds", "strongest not ours", "`pulse`", "`pulse-fused`", "`pulse-fused` − strongest"
        ),
    ]
    runs = {name: one for name, one in reports.items() if "pulse-fused" in one.get("systems", {})}
    for name, report in sorted(runs.items(), key=lambda pair: (pair[1]["protocol"]["synthetic"], pair[0])):
        protocol, strongest = report["protocol"], strongest_baseline(report)
        if protocol["negatives"] != 9 or protocol["sampling"] != "uniform":
            continue
        if not report["audit"]["passed"]:
            raise ValueError(f"{name}.json: failed its audit; it has no row in this table")
        best, text, fused = (report["systems"][row]["hr@1"]["value"] for row in (strongest, "pulse", "pulse-fused"))
        row = next(row for row in against_the_strongest(report) if row["system"] == "pulse-fused")
        told = f"{name} (**synthetic**)" if protocol["synthetic"] else name
        counts = f"{protocol['users']:,} | {len(protocol.get('seeds', [0]))}"
        found = f"{strongest} {best:.3f} | {text:.3f} | {fused:.3f} | {signed(row)}, p {p_value(row['p_holm'])}"
        lines.append(f"| {told} | {counts} | {found} |")
    return "\n".join(lines)


def table(report: dict[str, Any]) -> str:
    """HR@1, NDCG@10 and the slices of every system, worst first, and the worth of a reason."""
    protocol, published = report["protocol"], report.get("published", {})
    paper = ["paper"] if published else []
    seeds = len(protocol.get("seeds", [0]))
    told = f", mean of {seeds} seeds; rows with * have one" if seeds > 1 else ""
    spread = ["lowest and highest seed"] if seeds > 1 else []
    kind = "**synthetic embedded shop**" if protocol["synthetic"] else "real data"
    lines = [
        f"{protocol['users']:,} test users, 1 of {protocol['negatives'] + 1} candidates ({kind}{told}; audit "
        f"{'passed' if report['audit']['passed'] else 'FAILED'}):",
        "",
        *header("system", "HR@1 (95 % interval)", *spread, "NDCG@10", "HR@1 cold", "HR@1 warm", *paper),
    ]
    for row in cards.systems_table(report):
        cells = [row[key] for key in ("name", "hr", "ndcg", "cold", "warm")]
        if spread:
            cells.insert(2, extremes(report["by_seed"][row["name"]]))
        cells[0] += "*" * (len(report["systems"][row["name"]].get("seeds", [0])) < seeds)
        lines.append(f"| {' | '.join(cells + [figure(published.get('systems', {}), row['name'])] * len(paper))} |")
    against = against_the_strongest(report)
    lines += differences("against the strongest row that is not ours (HR@1, paired)", against, report["comparisons"])
    for part in ("cold", "warm"):
        tested = against_the_strongest(report, part)
        lines += differences(
            f"{part} targets: against the strongest row there that is not ours (HR@1, paired)", tested
        )
    controls = what_thoughts_add(report)
    first = [row for row in controls if row["metric"] == "hr@1"]
    lines += differences("what thoughts add, each against the same without them (HR@1, paired)", first, controls)
    runs = report.get("worth_of_a_reason", {}).get("runs", seeds)
    part = "" if runs == seeds else f", {runs} of {seeds} seeds"
    lines += differences(f"what a reason is worth (`pulse`, HR@1, paired{part})", cards.worth_of_a_reason(report))
    if published and "worth_of_a_reason" in report:
        lines += reasons(report["worth_of_a_reason"]["variants"], published["reasons"], part)
    if published:
        lines += costs(report["systems"])
    return "\n".join(lines)


def extremes(values: list[float | None]) -> str:
    """The lowest and the highest of a row's seeds; nothing where it has one.

    >>> extremes([0.71, None, 0.7]), extremes([0.5, None, None])
    ('0.700, 0.710', '–')
    """
    known = [value for value in values if value is not None]
    return f"{min(known):.3f}, {max(known):.3f}" if len(known) > 1 else "–"


def reasons(variants: dict[str, Any], published: dict[str, float], part: str) -> list[str]:
    """The paper's ablations A and B in one table: which reason the scorer is given; ``part`` says of which seeds."""
    lines = ["", *header(f"`pulse`{part}, given", "HR@1 (95 % interval)", "paper")]
    for name, row in sorted(variants.items(), key=lambda pair: pair[1]["hr@1"]["value"]):
        lines.append(f"| {name} | {cards.span(row['hr@1'])} | {figure(published, name)} |")
    return lines


def costs(systems: dict[str, Any]) -> list[str]:
    """What each row took: all the stages it rests on and its own scoring, as the run measured them."""
    known = any("seconds_per_user" in row["cost"] for row in systems.values())  # not in older reports
    served = ["ms per further user"] if known else []
    names = ("HR@1", "minutes", *served, "million tokens of a language model", "MB of fitted models")
    lines = ["", *header("what it took", *names)]
    for name, row in sorted(systems.items(), key=lambda pair: pair[1]["cost"]["seconds"]):
        cost = row["cost"]
        further = f"{1000 * cost['seconds_per_user']:.1f} | " if known else ""
        told = f"{cost['seconds'] / 60:.1f} | {further}{cost['tokens'] / 1e6:.2f} | {cost['bytes'] / 1e6:.0f}"
        lines.append(f"| {name} | {row['hr@1']['value']:.3f} | {told} |")
    return lines


def header(*names: str) -> list[str]:
    """The two lines that a table begins with."""
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def signed(row: dict[str, Any], value: str = "difference") -> str:
    """A difference with its interval."""
    return f"{row[value]:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def figure(published: dict[str, float], name: str) -> str:
    """What was published for a row, if anything."""
    return f"{published[name]:.3f}" if name in published else "–"


def differences(title: str, rows: list[dict[str, Any]], beside: Sequence[dict[str, Any]] = ()) -> list[str]:
    """A table of paired differences in HR@1, if there are any, with those in NDCG@10 where they are told, too."""
    ranked = {(row["system"], row["baseline"]): row for row in beside if row["metric"] == "ndcg@10"}
    lines = ["", *header(title, "difference", "p", "p (Holm)", *(["NDCG@10", "p (Holm)"] if ranked else []))]
    for row in rows:
        pair = row["system"], row["baseline"]
        cells = [" against ".join(pair), signed(row), p_value(row["p"]), p_value(row["p_holm"])]
        cells += [signed(ranked[pair]), p_value(ranked[pair]["p_holm"])] if ranked else []
        lines.append(f"| {' | '.join(cells)} |")
    return lines if rows else []
