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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pulse_hf.evaluation.report import against_the_strongest, p_value, strongest_baseline, what_thoughts_add
from pulse_hf.hub import cards

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "hub_cards" / "reports"
PAGES = (ROOT / "README.md", REPORTS / "README.md")
BLOCK = re.compile(r"(<!-- results:([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def kept_report(name: str) -> dict[str, Any]:
    """One of ``hub_cards/reports/``."""
    report: dict[str, Any] = json.loads((REPORTS / f"{name}.json").read_text(encoding="utf-8"))
    return report


def glance() -> str:
    """One row for each report of a run: the strongest baseline, ours, and how far ``pulse-fused`` is above it."""
    lines = [
        "HR@1 of 1 positive and 9 uniform negatives, all audits passed; differences are paired over the same users "
        "(95 %, p by Holm within a report):",
        "",
        *header(
            "data", "users", "seeds", "strongest not ours", "`pulse`", "`pulse-fused`", "`pulse-fused` − strongest"
        ),
    ]
    reports = {path.stem: kept_report(path.stem) for path in REPORTS.glob("*.json")}
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


def knobs(control: dict[str, Any]) -> str:
    """What ``scripts/control.py`` found in each of its worlds."""
    worlds = control["worlds"]
    lines = [
        f"{control['users']:,} test users in each of {len(worlds)} **synthetic** worlds (seed {control['seed']}); "
        "gain in HR@1 over the strongest row that is not ours (p, where it is kept, by Holm within a world):",
        "",
        *header("motive knob", "strongest", "`pulse`", "`pulse-fused`"),
    ]
    for knob, row in worlds.items():
        told = [(signed(row[name]), row[name]["p_holm"]) for name in ("pulse", "pulse-fused")]
        gains = [gain if p is None else f"{gain}, p {p_value(p)}" for gain, p in told]
        lines.append(f"| {knob} | {row['strongest']} {row['hr@1'][row['strongest']]:.3f} | {' | '.join(gains)} |")
    return "\n".join(lines)


def steered(report: dict[str, Any]) -> str:
    """What ``scripts/steering.py`` found, as a paragraph."""
    rose, third = (round(report[name] * report["users"]) for name in ("steered", "control"))
    before, after = report["first_ten"]
    return (
        "Steering on the embedded (**synthetic**) shop: with the reason edited to another known motive, the items of\n"
        f"that motive rose for {rose} of {report['users']} people, by {report['places']:.1f} of 100 places on average "
        f"({before:.2f} of them among the\nfirst ten before, {after:.2f} after); those of a motive that nobody asked "
        f"for rose for {third} (`scripts/steering.py`)."
    )


def leaks(report: dict[str, Any]) -> str:
    """What ``scripts/leak_worth.py`` found."""
    rows = list(report["honest"])
    lines = [
        f"{report['users']:,} test users of `{report['run']}`; HR@1, and what a leak adds (paired, 95 %):",
        "",
        f"| leak | {' | '.join(f'`{row}`' for row in rows)} |",
        "|---" * (1 + len(rows)) + "|",
        f"| none (honest) | {' | '.join(format(value, '.3f') for value in report['honest'].values())} |",
    ]
    for name, found in report["leaks"].items():
        cells = [f"{found[row]['hr@1']:.3f} ({signed(found[row])})" for row in rows]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def abroad(report: dict[str, Any]) -> str:
    """What ``scripts/cross_domain.py`` found, beside the paper's figures."""
    protocol, systems = report["protocol"], report["systems"]
    kind = "**synthetic embedded shops**" if protocol["synthetic"] else "real data"
    sources = protocol["source"]
    told = f"`{sources[0]}`" + (f" and its other seeds (mean of {len(sources)})" if len(sources) > 1 else "")

    def paper(row: dict[str, Any]) -> str:
        return "–" if row["paper_hr@1"] is None else f"{row['paper_hr@1']:.4f}"

    lines = [
        f"{protocol['users']:,} test users of {protocol['target']}, 1 of {protocol['negatives'] + 1} candidates "
        f"({kind}); everything learnt in {told}, nothing fitted on the shop:",
        "",
        "| system | HR@1 (95 % interval) | NDCG@10 | MRR | the paper's HR@1 |",
        "|---|---|---|---|---|",
    ]
    for name, row in sorted(systems.items(), key=lambda pair: (pair[1]["hr@1"]["value"], pair[0])):
        shown = f"*{name}: sees the shop's interactions*" if row["sees_the_shop"] else name
        means = f"{row['ndcg@10']['value']:.3f} | {row['mrr']['value']:.3f}"
        lines.append(f"| {shown} | {cards.span(row['hr@1'])} | {means} | {paper(row)} |")
    absent = [f"{name} ({row['why']}; paper {paper(row)})" for name, row in report["left_out"].items()]
    lines += ["", f"No row: {'; '.join(absent)}."] if absent else []
    paired = [row for row in report["comparisons"] if row["metric"] == "hr@1"]
    return "\n".join(lines + differences("paired over the same users (HR@1)", paired))


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


def ablated(report: dict[str, Any]) -> str:
    """What ``scripts/ablations.py`` found: each arm in both forms, and how far it is from the run as it is."""
    kind = "**synthetic embedded shop**" if report["synthetic"] else "real data"
    whole = {form: found["systems"] for form, found in report["forms"].items()}
    published = {arm["name"]: arm["published"] for arm in report["arms"] if arm["published"]}
    apart = {
        (form, row["system"]): row
        for form, found in report["forms"].items()
        for row in found["comparisons"]
        if row["metric"] == "hr@1"
    }
    lines = [
        f"{report['users']:,} test users of `{report['run']}` ({kind}), every arm tuned anew; HR@1 and the difference "
        "to the first row (paired, 95 %, p by Holm):",
        "",
        *header("arm", "reasons changed", *(f"`{form}`" for form in whole), "paper"),
    ]
    for arm in report["arms"]:
        changed = "–" if arm.get("changed") is None else f"{arm['changed'] / report['decisions']:.0%}"
        cells = [arm["name"], changed]
        for form, systems in whole.items():
            told = "–" if arm["name"] not in systems else f"{systems[arm['name']]['hr@1']['value']:.3f}"
            row = apart.get((form, arm["name"]))
            cells.append(told if row is None else f"{told} ({signed(row)}, p {p_value(row['p_holm'])})")
        lines.append(f"| {' | '.join([*cells, figure(published, arm['name'])])} |")
    absent = [f"{name} ({why})" for name, why in report["left_out"].items()]
    return "\n".join(lines + (["", f"No row: {'; '.join(absent)}."] if absent else []))


def grown(report: dict[str, Any]) -> str:
    """What ``scripts/protocols.py`` found, the best of ten uniform candidates last."""
    order = sorted(report["protocols"], key=lambda name: (name == "catalogue", name[0] != "u", len(name)))
    protocols = {name: report["protocols"][name] for name in order}
    names = list(protocols["uniform 1+9"]["systems"])
    names.sort(key=lambda name: protocols["uniform 1+9"]["systems"][name]["hr@1"]["value"])
    read = f"; of the whole catalogue language models rank the {report['read']} best by `sasrec+text`"
    lines = [
        f"{report['users']:,} test users of `{report['run']}`, HR@1{read if 'catalogue' in protocols else ''}:",
        "",
        *header("system", *protocols),
    ]
    for name in names:
        found = [one["systems"].get(name) for one in protocols.values()]
        cells = ["–" if row is None else f"{row['hr@1']['value']:.3f}" for row in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def answered(report: dict[str, Any]) -> str:
    """What ``scripts/question_answering.py`` found: which rationale is selected, and what is answered."""
    ranked, protocol = report["rankings"]["all"]["rows"], report["protocol"]["questions"]
    size = protocol["train"] + protocol["test"]
    lines = [
        f"{size} HotpotQA questions (distractor, dev), 10 paragraphs each, 2 of them supporting:",
        "",
        *header("selector of a rationale", "its paragraph supports", "recall of paragraphs @2", "MRR"),
    ]
    for row in sorted(ranked, key=lambda row: row["selection"]["value"]):
        cells = [cards.span(row["selection"]), cards.span(row["recall@2"]), f"{row['mrr']['value']:.3f}"]
        lines.append(f"| {row['system']} | {' | '.join(cells)} |")
    lines += ["", *header(f"answers, {protocol['test']} test questions", "EM", "F1", "paper's EM", "paper's F1")]
    for row in report["answers"]["rows"]:
        paper = [figure(row["paper"] or {}, metric) for metric in ("em", "f1")]
        lines.append(f"| {row['system']} | {' | '.join([cards.span(row['em']), cards.span(row['f1']), *paper])} |")
    return "\n".join(lines)


def agreed(report: dict[str, Any]) -> str:
    """What ``scripts/outside_judge.py`` found: rationales ranked as their rewards, explanations found."""
    lines = []
    if "rollouts" in report:
        counts = report["rollouts"]["counts"]
        lines += [
            f"{counts['rationales']:,} rationales of {counts['prompts']} prompts that `pulse-nano` never saw "
            "(Reason4Rec, 16 a prompt and step), ranked within their group:",
            "",
            *header("scorer", "titles", "rank correlation with the reward", "reward of its best over the mean"),
        ]
        for row in report["rollouts"]["rows"]:
            told = "left out" if row["titles"] == "titles_masked" else "shown"
            cells = [signed(one, "value") for one in (row["spearman"], row["best_of_16"]["over_the_mean"])]
            lines.append(f"| {row['scorer']} | {told} | {' | '.join(cells)} |")
    if "xrec" in report:
        chosen = next(key for key in report["xrec"]["rows"][0] if key.startswith("1-of-"))
        judged = min(one["judged"] for one in report["xrec"]["counts"].values())
        lines += [
            "",
            "XRec: the explanation of a choice found by what is known of its reader, titles' words left out of both:",
            "",
            *header("scorer", "judged on", f"R@1 of {judged:,}", "1 of " + chosen.removeprefix("1-of-")),
        ]
        for row in report["xrec"]["rows"]:
            if row["masking"] == "both":
                cells = [row["scorer"], row["judged_on"], cards.span(row["r@1"]), cards.span(row[chosen])]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def added(report: dict[str, Any]) -> str:
    """What ``scripts/real_rationales.py`` found: what further texts add to a space of titles."""
    rows = report["rows"]
    lines = [
        f"{report['people']:,} people of whom no fit saw anything, 1 of 10 candidates, {len(report['seeds'])} seeds "
        "(real data):",
        "",
        *header("fitted on", "titles", "further texts", "epoch kept, by seed", "HR@1 (95 % interval)", "MRR"),
    ]
    for row in rows:
        name = row["space"] if row["space"] in ("untrained", "titles") else f"titles and {row['space']}"
        titles = report["training_choices"].get(row.get("among"), 0)
        epochs = ", ".join(map(str, row.get("best_epochs", []))) or "–"
        cells = [
            f"{titles:,}",
            f"{row.get('further_pairs', 0):,}",
            epochs,
            cards.span(row["hr@1"]),
            cards.span(row["mrr"]),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    names = ("the rationale, against", "among", "HR@1 (paired)", "p (Holm)", "MRR (paired)", "p (Holm)")
    lines += ["", *header(*names)]
    for row in rows:
        for other, one in row["over"].items() if row["space"] == "the rationale" else ():
            cells = [cell for name in ("hr@1", "mrr") for cell in (signed(one[name]), p_value(one[name]["p_holm"]))]
            told = "titles alone" if other == "titles" else other
            lines.append(f"| {told} | {row['among']} choices | {' | '.join(cells)} |")
    return "\n".join(lines)


SHAPES = {
    "real-rationales": added,
    "outside-judge": agreed,
    "question-answering": answered,
    "control": knobs,
    "leak-worth": leaks,
    "steering": steered,
    "protocols": grown,
    "ablations": ablated,
    "cross-domain": abroad,
}
"""The shape of a block by how its name begins; all others are tables of a run."""


def render(text: str) -> str:
    """A page with every block rendered anew."""

    def block(match: re.Match[str]) -> str:
        if match[2] == "glance":
            return f"{match[1]}{glance()}\n{match[3]}"
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
