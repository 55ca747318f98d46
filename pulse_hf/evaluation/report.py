"""The report as Markdown: every table is rendered from ``report.json``, no number is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pulse_hf.evaluation.comparisons import against_the_strongest, what_thoughts_add
from pulse_hf.metrics import METRICS

__all__ = ["p_value", "render"]


def render(report: Mapping[str, Any]) -> str:
    """The report as Markdown; a pure function of ``report.json``'s content."""
    sections = [
        _heading(report),
        _systems(report),
        _slices(report),
        _comparisons(report),
        _controls(report),
        _worth(report),
        _faithfulness(report),
        _thought_space(report),
        _train_vs_test(report),
        _stackers(report),
        _audit(report),
        _costs(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruled = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in ruled)


def _span(span: Mapping[str, Any]) -> str:
    if span["value"] is None:
        return "–"
    return f"{span['value']:.3f} [{span['low']:.3f}, {span['high']:.3f}]"


def p_value(value: float) -> str:
    """A p-value as it is written.

    >>> p_value(0.0002), p_value(0.25)
    ('< .001', '0.250')
    """
    return "< .001" if value < 0.001 else f"{value:.3f}"


def _kind(report: Mapping[str, Any]) -> str:
    return "synthetic embedded world" if report["protocol"]["synthetic"] else "real data"


def _heading(report: Mapping[str, Any]) -> str:
    protocol = report["protocol"]
    verdict = "passed" if report["audit"]["passed"] else "FAILED: the numbers below are not to be used"
    synthetic = (
        "\n\n**These numbers are synthetic**: the users, their motives and their words are made by a seeded program. "
        "They show that the road works, not how well it works on people."
        if protocol["synthetic"]
        else ""
    )
    negatives = protocol["negatives"]
    full = protocol["sampling"] == "full"
    ranked = f"up to {negatives + 1} items" if full else f"{negatives + 1} candidates"
    drawn = "everything else that the person had not chosen" if full else f"{negatives} negatives"
    loo = protocol["split"].startswith("leave-one-out")
    later = "Leave-one-out lets other users' later events into training." if loo else ""
    sampled = "" if full else "Sampled metrics are not metrics of the full catalogue. "
    return (
        f"# Report ({_kind(report)})\n\n"
        f"{protocol['users']:,} test users, one decision each ({protocol['split']}). Every system ranks the same "
        f"{ranked}: the target and {drawn} ({protocol['sampling']}; sha256 "
        f"`{protocol['candidates_sha256'][:12]}`). {protocol['repeats']:.1%} of the targets stand in the history. "
        f"Ties count by expected value. {sampled}{later}\n\nLeak audit: **{verdict}**.{synthetic}"
    )


def _ranked(systems: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Worst first: the order is in the content, because JSON keeps none."""
    return sorted(systems.items(), key=lambda pair: (pair[1]["hr@1"]["value"], pair[0]))


def _systems(report: Mapping[str, Any]) -> str:
    oracles = {f"*{name}*": row for name, row in report.get("oracles", {}).items()}
    rows = [
        [name, *(_span(row[metric]) for metric in METRICS)]
        for name, row in [*_ranked(report["systems"]), *_ranked(oracles)]
    ]
    caption = f"Mean over users with 95 % bootstrap interval ({_kind(report)})"
    caption += "; oracles (in italics) know what no system can." if report.get("oracles") else "."
    return "## Systems\n\n" + _table(["system", *METRICS], rows) + "\n\n" + caption


def _slices(report: Mapping[str, Any]) -> str:
    rows = [
        [name, _span(row["slices"]["cold"]["hr@1"]), _span(row["slices"]["warm"]["hr@1"])]
        for name, row in _ranked(report["systems"])
    ]
    first = next(iter(report["systems"].values()))["slices"]
    header = ["hr@1", f"cold ({first['cold']['users']:,} users)", f"warm ({first['warm']['users']:,} users)"]
    caption = f"Cold: the target item has at most 5 training events ({_kind(report)})."
    text = "## Cold and warm targets\n\n" + _table(header, rows) + "\n\n" + caption
    for part in ("cold", "warm"):
        tested = against_the_strongest(report, part)
        if tested:
            text += f"\n\n{part.capitalize()} targets, against the strongest row there that is not ours:\n\n"
            text += _comparison_table(tested)
    return text


def _comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = []
    for row in rows:
        span = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        cells.append([row["system"], row["baseline"], row["metric"], span, p_value(row["p"]), p_value(row["p_holm"])])
    return _table(["system", "against", "metric", "difference", "p", "p (Holm)"], cells)


def _comparisons(report: Mapping[str, Any]) -> str:
    if not report["comparisons"]:
        return ""
    caption = (
        f"Paired over the same users: 95 % bootstrap interval of the difference, sign-flip randomisation p, "
        f"Holm over all comparisons of one metric ({_kind(report)})."
    )
    return "## Comparisons\n\n" + _comparison_table(report["comparisons"]) + "\n\n" + caption


def _controls(report: Mapping[str, Any]) -> str:
    rows = what_thoughts_add(report)
    if not rows:
        return ""
    caption = f"Each row of ours that thinks against the same without thoughts, paired ({_kind(report)})."
    return "## What thoughts add\n\n" + _comparison_table(rows) + "\n\n" + caption


def _worth(report: Mapping[str, Any]) -> str:
    worth = report.get("worth_of_a_reason")
    if not worth:
        return ""
    rows = [[name, *(_span(row[metric]) for metric in METRICS)] for name, row in _ranked(worth["variants"])]
    return (
        "## The worth of a reason\n\n"
        "The same fitted pulse scores the same candidates; only the reason in its prompt differs.\n\n"
        + _table(["reason", *METRICS], rows)
        + "\n\n"
        + _comparison_table(worth["comparisons"])
        + f"\n\nPaired over the same users ({_kind(report)})."
    )


def _faithfulness(report: Mapping[str, Any]) -> str:
    faith = report.get("faithfulness")
    if not faith:
        return ""
    measured = [("chosen thoughts, everybody", faith)]
    if "held_out" in faith:
        measured.append(("chosen thoughts, held-out motives", faith["held_out"]))
    if "extractive" in faith:
        measured.append(("extractive engine, everybody", faith["extractive"]))
        if "held_out" in faith["extractive"]:
            measured.append(("extractive engine, held-out motives", faith["extractive"]["held_out"]))
    rows = [[name, f"{row['decisions']:,}", _span(row["own"]), _span(row["other"])] for name, row in measured]
    return (
        "## Faithfulness\n\n"
        + _table(["reasons", "users", "name the user's own motive", "name a random other user's motive"], rows)
        + "\n\nSynthetic: a motive is named if one of its phrases is in the text. Held-out motives are those that "
        "pulse-nano was never trained on. The extractive engine quotes two sentences of the person's and writes "
        "nothing of its own."
    )


def _thought_space(report: Mapping[str, Any]) -> str:
    found = report.get("thought_space")
    if not found:
        return ""
    shown = {"titles": "as they are", "titles_masked": "without words of the titles"}
    rows = []
    for key, told in shown.items():
        if key in found["after"]:
            before, after = found["before"][key], found["after"][key]
            ranks = [f"{one[metric]:.3f}" for metric in ("r@1", "mrr") for one in (before, after)]
            rows.append([told, f"{after['pairs']:,}", f"{after['candidates']:,.0f}", *ranks])
    return (
        "## Thought Space\n\n"
        + _table(["texts", "pairs", "candidates", "R@1 before", "R@1", "MRR before", "MRR"], rows)
        + "\n\nHow well a held-out history finds its rationale among others. What is left without the words of titles "
        "is what the space knows beyond them."
    )


def _train_vs_test(report: Mapping[str, Any]) -> str:
    rows = report.get("train_vs_test")
    if not rows:
        return ""
    measures = {
        "agreement": "mean agreement s*",
        "sasrec_hr@1": "sasrec hr@1",
        "shared_reasons_hr@1": "shared reasons alone hr@1",
    }
    shown = {key: title for key, title in measures.items() if any(key in row for row in rows.values())}
    cells = [
        [name, f"{row['decisions']:,}", *(_span(row[key]) if key in row else "–" for key in shown)]
        for name, row in sorted(rows.items(), reverse=True)
    ]
    return (
        "## Train like test\n\n"
        + _table(["rows", "decisions", *shown.values()], cells)
        + "\n\nRows that the scorer was tuned on, judged by models that never saw the person, beside test rows. Far "
        "apart means that the scorer was tuned on inputs it will not meet. What votes count is fitted on validation "
        "rows."
    )


def _stackers(report: Mapping[str, Any]) -> str:
    stackers = report.get("stackers")
    if not stackers:
        return ""
    rows = [
        [name, ", ".join(f"{part} {weight:+.3f}" for part, weight in zip(s["names"], s["weights"], strict=True))]
        for name, s in sorted(stackers.items())
    ]
    return "## Stackers\n\n" + _table(["system", "weights of standardised ingredients, fitted on validation"], rows)


def _audit(report: Mapping[str, Any]) -> str:
    rows = [["ok" if c["passed"] else "**FAILED**", c["name"], c["detail"]] for c in report["audit"]["checks"]]
    return "## Leak audit\n\n" + _table(["", "check", "detail"], rows)


def _cost(cost: Mapping[str, float]) -> list[str]:
    further = f"{1000 * cost['seconds_per_user']:,.1f}" if "seconds_per_user" in cost else "–"  # older reports
    return [f"{cost['tokens']:,}", f"{cost['seconds']:,.1f}", further, f"{cost['bytes']:,}"]


def _costs(report: Mapping[str, Any]) -> str:
    rows = [[name, *_cost(row["cost"])] for name, row in _ranked(report["systems"])]
    stages = [[name, f"{row['seconds']:,.1f}", f"{row['rows']:,}"] for name, row in sorted(report["stages"].items())]
    return (
        "## Cost\n\n"
        + _table(["system", "SLM tokens", "seconds", "ms per further user", "bytes of its models"], rows)
        + "\n\n"
        + _table(["stage", "seconds", "rows"], stages)
    )
