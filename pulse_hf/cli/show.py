"""What the command line prints: the report's headline, recommendations with reasons, the audit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pulse_hf.artifacts import read_json, seed_of
from pulse_hf.retrieval.names import Title

if TYPE_CHECKING:
    from pulse_hf.recommender import Event, PulseRecommender, Recommendation

# Anything a terminal would act on, from titles and model text alike.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069]")


def plain(text: str) -> str:
    """Text that a terminal shows and never obeys."""
    return _CONTROL.sub("?", text)


def show_report(run: Path) -> None:
    """Print HR@1 of every system, best last, and where the report lies."""
    report = read_json(run / "report.json")
    kind = "SYNTHETIC embedded shop" if report["protocol"]["synthetic"] else "real data"
    typer.echo(
        f"\nHR@1 of {report['protocol']['users']:,} test users, 1 of {report['protocol']['negatives'] + 1} ({kind})"
    )
    rows = sorted(report["systems"].items(), key=lambda row: row[1]["hr@1"]["value"])
    for name, row in rows:
        span = row["hr@1"]
        typer.echo(f"  {name:<20}{span['value']:.3f}  [{span['low']:.3f}, {span['high']:.3f}]")
    typer.echo(f"leak audit: {'passed' if report['audit']['passed'] else 'FAILED'}; report: {run / 'report.md'}")


def show_examples(run: Path, count: int) -> None:
    """Print recommendations for a few users of the run, with what they said and the reason."""
    from pulse_hf.recommender import PulseRecommender

    recommender = PulseRecommender.from_run(run)
    for user_id in list(recommender.users)[:count]:
        _print_user(recommender, user_id, 3)


def show_recommendations(folder: Path, *, user: str | None, history: list[str], k: int, rationale: str | None) -> None:
    """Print a ranked list with reasons.

    Raises:
        ValueError: Neither or both of user and history are given, or the folder is not there.
    """
    if (user is None) == (not history):
        raise ValueError("give either --user ID or --history TITLE (once per item, oldest first)")
    recommender = _open(folder)
    if user is not None:
        _print_user(recommender, user, k, rationale)
    else:
        _print_ranked(recommender.recommend([Title(one) for one in history], k=k, rationale=rationale), rationale)


def _open(folder: Path) -> PulseRecommender:
    from pulse_hf.artifacts import finish_replacing
    from pulse_hf.recommender import PulseRecommender
    from pulse_hf.saving import RECORD

    finish_replacing(folder)  # of a save that was killed
    if (folder / RECORD).exists():
        return PulseRecommender.from_pretrained(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give --run with a finished run or a saved recommender")
    return PulseRecommender.from_run(folder)


def _print_user(recommender: PulseRecommender, user_id: str, k: int, rationale: str | None = None) -> None:
    history = recommender.history_of(user_id)
    typer.echo(f"\nuser {plain(user_id)}, the last of {len(history)} events:")
    for event in history[-3:]:
        typer.echo(f"  {_event(event, recommender)}")
    _print_ranked(recommender.recommend(history, k=k, rationale=rationale), rationale)


def _event(event: Event, recommender: PulseRecommender) -> str:
    title = recommender.parts.items[event.item].title
    return plain(f"{title}{f': {event.review}' if event.review else ''}")


def _print_ranked(ranked: list[Recommendation], rationale: str | None = None) -> None:
    if not ranked:
        typer.echo("nothing left to recommend")
        return
    if ranked[0].cold_start:
        typer.echo("nothing of this history is in the catalogue")
    agreement = "" if ranked[0].agreement is None else f" (agreement {ranked[0].agreement:.2f})"
    absent = "no reason could be written" if rationale is None else "no reason was asked for"
    typer.echo(f"because: {plain(ranked[0].rationale) or absent}{agreement}")
    for place, one in enumerate(ranked, start=1):
        typer.echo(f"  {place:>2}. {plain(one.title)}  [{plain(one.item_id)}]  {one.score:.2f}")


def show_audit(run: Path) -> bool:
    """Run the leak audit on a finished run and print each check.

    Returns:
        Whether all passed.
    """
    from pulse_hf.evaluation.leakage import audit

    result = audit(run, seed=seed_of(run / "sequences"))
    for check in result["checks"]:
        typer.echo(f"{'ok  ' if check['passed'] else 'FAIL'} {check['name']}: {check['detail']}")
    return bool(result["passed"])
