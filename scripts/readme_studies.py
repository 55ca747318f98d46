"""The tables of studies for :mod:`render_readme`: one function for each script, by its name."""

from __future__ import annotations

from typing import Any

from readme_runs import differences, figure, header, signed

from pulse_hf.evaluation.report import p_value
from pulse_hf.hub import cards


def control(control: dict[str, Any]) -> str:
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


def steering(report: dict[str, Any]) -> str:
    """What ``scripts/steering.py`` found, as a paragraph."""
    rose, third = (round(report[name] * report["users"]) for name in ("steered", "control"))
    before, after = report["first_ten"]
    return (
        "Steering on the embedded (**synthetic**) shop: with the reason edited to another known motive, the items of\n"
        f"that motive rose for {rose} of {report['users']} people, by {report['places']:.1f} of 100 places on average "
        f"({before:.2f} of them among the\nfirst ten before, {after:.2f} after); those of a motive that nobody asked "
        f"for rose for {third} (`scripts/steering.py`)."
    )


def leak_worth(report: dict[str, Any]) -> str:
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


def cross_domain(report: dict[str, Any]) -> str:
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


def ablations(report: dict[str, Any]) -> str:
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


def protocols(report: dict[str, Any]) -> str:
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


def question_answering(report: dict[str, Any]) -> str:
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


def outside_judge(report: dict[str, Any]) -> str:
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


def real_rationales(report: dict[str, Any]) -> str:
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


def plain_controls(report: dict[str, Any]) -> str:
    """What ``scripts/plain_controls.py`` found of one run."""
    rows, candidates = report["popularity"]["rows"], report["candidates"]
    lines = [
        f"{report['users']:,} test users of `{report['run']}`; counts joined to the tuned encoder as every fusion is:",
        "",
        *header("system", "HR@1 (95 % interval)", "NDCG@10", "HR@1 cold", "HR@1 warm"),
    ]
    for name, row in sorted(rows.items(), key=lambda pair: (pair[1]["hr@1"]["value"], pair[0])):
        parts = [f"{row['slices'][part]['hr@1']['value']:.3f}" for part in ("cold", "warm")]
        lines.append(f"| {name} | {cards.span(row['hr@1'])} | {row['ndcg@10']['value']:.3f} | {' | '.join(parts)} |")
    compared = report["popularity"]["comparisons"]
    first = [row for row in compared if row["metric"] == "hr@1"]
    lines += differences("`pulse` against the encoder with counts (HR@1, paired)", first, compared)
    lines += ["", *header("HR@1 of counts over", *report["later_events"])]
    for trained in ("training events", "all but the last"):
        found = [f"{one[trained]:.3f}" for one in report["later_events"].values()]
        lines.append(f"| {trained} | {' | '.join(found)} |")
    known = {"titles": "as they are", "titles_masked": "without words of titles"}
    lines += [
        "",
        *header("held-out rationale found by its history, texts", "among", "R@1 before fitting", "R@1", "MRR"),
    ]
    for key, told in known.items():
        before, after = (report["thought_space"][when].get(key) for when in ("before", "after"))
        if after is not None:
            ranks = f"{before['r@1']:.3f} | {after['r@1']:.3f} | {after['mrr']:.3f}"
            lines.append(f"| {told} | {after['candidates']:,.0f} | {ranks} |")
    own, sets = candidates["own_later_choice_among_negatives"], candidates["sets"]
    shares = ", ".join(f"{own[split]:,} of {sets[split]:,} {split} sets" for split in sets)
    lines += [
        "",
        f"{candidates['targets_without_training_events']:,} of {report['users']:,} test targets have no training "
        f"event. Somebody's own later choice stands among the negatives of {shares}.",
    ]
    return "\n".join(lines)
