"""The evidence: every arm on real data under one protocol, several seeds, one report each.

    python scripts/evidence.py                                    # all arms, in the order of the ledger
    python scripts/evidence.py luxury-beauty-dedup-1x9 --seeds 0 1 2
    python scripts/evidence.py --list                             # what has run, what has not, and its command
    python scripts/evidence.py ARM --seeds 1 --keep               # one seed, kept for a report of several
    python scripts/evidence.py ARM --seeds 0 1 2 --keep           # the seeds kept so far are not run again

An arm is a file ``scripts/evidence/<dataset>-<variant>-<protocol>.json``: its data folder, its settings on top of
the preset ``small``, its seeds if they are not 0, 1 and 2, what later seeds leave out, and the figures that the paper
published for it, which are shown beside ours. Each seed runs the whole road in ``runs/evidence/<arm>-s<seed>``
(resumable, like any run); when all seeds of an arm are done, every user's metrics are averaged over them and the
report goes to ``hub_cards/reports/<arm>.json`` with its command, settings' hash, seeds and seconds. README and cards
are rendered from these files alone. With ``--keep`` what a seed leaves for such a report (where each target stood, no
people, items or texts) is kept in ``hub_cards/reports/seeds/``, so that seeds may be run on different days and
machines; without it every seed is run here. The data is not part of this repository; an arm without data says so and
is passed over.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pulse_hf.artifacts import ArtifactError, read_json, sha256_of_text, write_json
from pulse_hf.evaluation.fusion.fusion import INGREDIENTS, REVIEWS, TUNED
from pulse_hf.evaluation.outcomes import Outcome, code_sha256, load_outcome, outcome_of, save_outcome
from pulse_hf.evaluation.pooled import pooled_report
from pulse_hf.models.device import few_compiled_products
from pulse_hf.pipeline import run_road
from pulse_hf.presets import preset_named
from pulse_hf.settings import RunSettings, merge

ROOT = Path(__file__).resolve().parents[1]
ARMS = Path(__file__).with_suffix("")
REPORTS = ROOT / "hub_cards" / "reports"
DATA = ROOT.parent / "shared" / "data"
SEEDS = (0, 1, 2)


def arm_of(path: Path) -> dict[str, Any]:
    """An arm's file; what it does not say is as in the arm that it is ``like``."""
    arm: dict[str, Any] = read_json(path)
    if "like" not in arm:
        return arm
    other = arm_of(path.with_name(f"{arm['like']}.json"))
    settings = {**other["settings"]}
    for group, values in arm["settings"].items():
        settings[group] = {**settings.get(group, {}), **values}
    return {**other, **arm, "settings": settings}


def settings_of_arm(path: Path, data: Path, *, later: bool = False) -> tuple[RunSettings, Path]:
    """An arm's settings and the folder of its data.

    Args:
        path: The arm's file.
        data: Folder of the datasets.
        later: Of seeds after the first one: what costs most is run once.
    """
    arm = arm_of(path)
    folder = data / arm["data"]
    prepare = {key: arm["settings"]["prepare"][key] for key in ("reviews", "metadata")}
    settings = merge(preset_named("small"), arm["settings"], str(path))
    if later:
        settings = merge(settings, arm.get("later_seeds", {}), str(path))
    where = {key: str(folder / name) for key, name in prepare.items() if name}
    settings = replace(settings, prepare=replace(settings.prepare, **where))
    if settings.rationales.engine == "recorded":
        file = str(folder / settings.rationales.model)
        settings = replace(settings, rationales=replace(settings.rationales, model=file))
    return settings, folder


def facts_of(settings: RunSettings) -> dict[str, Any]:
    """The settings without the seed and without where the data lies, which differs from machine to machine.

    What is not set (``None``) is left out, so that a setting which comes later leaves kept seeds what they are.
    """
    facts = json.loads(json.dumps(asdict(settings)))
    for key in ("reviews", "metadata"):
        facts["prepare"][key] = Path(facts["prepare"][key] or "").name
    if settings.rationales.engine == "recorded":
        facts["rationales"]["model"] = Path(settings.rationales.model).name
    facts["evaluate"]["fused"] = [*INGREDIENTS, REVIEWS, *TUNED]  # of other ones a fusion is another row
    del facts["seed"]
    return _set_only(facts)


def _set_only(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _set_only(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }


def outcome_of_seed(name: str, seed: int, data: Path, runs: Path, *, later: bool, keep: bool) -> Outcome:
    """Run one seed of an arm, or take what was kept of it, as a first seed or a later one.

    Raises:
        ArtifactError: What was kept is of other settings.
    """
    path, words = ARMS / f"{name}.json", f"{name}-s{seed}"
    kept = REPORTS / "seeds" / words
    first_or_later = [settings_of_arm(path, data, later=either)[0] for either in (False, True)]
    facts = [sha256_of_text([json.dumps(facts_of(one), sort_keys=True)]) for one in first_or_later]
    if keep and kept.exists():
        outcome = load_outcome(kept)
        if outcome.settings_sha256 not in facts:
            raise ArtifactError(f"{kept} was kept from other settings than {name} has now; remove it to run it anew")
        print(f"== {name}, seed {seed}: kept in {kept} ==", flush=True)
        return outcome
    print(f"== {name}, seed {seed}: {runs / words} ==", flush=True)
    run_road(runs / words, replace(first_or_later[later], seed=seed))
    outcome = outcome_of(runs / words, facts[later])
    if keep:
        save_outcome(kept, outcome)
    return outcome


def run_arm(name: str, data: Path, seeds: list[int], runs: Path, *, keep: bool) -> dict[str, Any]:
    """Run every seed of an arm, pool their reports and put the published figures beside them."""
    path, outcomes = ARMS / f"{name}.json", []
    drawn = settings_of_arm(path, data)[0].candidates
    if len(seeds) > 1 and drawn.max_test_users is not None and drawn.test_users_seed is None:
        raise ValueError(
            f"{name} samples its test users (max_test_users), other ones for every seed; set test_users_seed or give "
            f"one seed, found {seeds}"
        )
    for seed in seeds:
        outcomes.append(outcome_of_seed(name, seed, data, runs, later=seed != seeds[0], keep=keep))
    if len({one.code_sha256 for one in outcomes}) > 1 or not outcomes[0].code_sha256:
        print(
            f"{name}: its seeds were run by different or unknown versions of the package (code_sha256 in the report)"
        )
    report = pooled_report(outcomes)
    report["command"] = f"python scripts/evidence.py {name} --seeds {' '.join(map(str, seeds))}{' --keep' * keep}"
    if data.resolve() != DATA.resolve():  # made by a script, as its folder tells
        report["command"] += f" --data {_named(data)}"
    report["settings_sha256"] = sha256_of_text(one.settings_sha256 for one in outcomes)
    report["seconds"] = round(sum(one.seconds for one in outcomes), 1)
    report["published"] = arm_of(path).get("published", {})
    return report


def _named(folder: Path) -> str:
    """A folder within the project by its place there; no other place is told."""
    inside = folder.resolve().is_relative_to(ROOT)
    return folder.resolve().relative_to(ROOT).as_posix() if inside else folder.name


def state(name: str, folder: Path) -> str:
    """One line of the list."""
    path = REPORTS / f"{name}.json"
    if path.exists():
        report = read_json(path)
        return (
            f"{name}: {report['protocol']['users']:,} users, seeds {report['protocol']['seeds']}, {report['command']}"
        )
    reason = "no data here" if not folder.exists() else "not run"
    return f"{name}: {reason}; python scripts/evidence.py {name}"


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = sorted(path.stem for path in ARMS.glob("*.json"))
    parser.add_argument("arms", nargs="*", metavar="ARM", help=f"some of {', '.join(known)}; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", help="the arm's own by default, or 0 1 2")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the datasets")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "evidence")
    parser.add_argument("--keep", action="store_true", help="keep each seed's outcome, and take those that are kept")
    parser.add_argument("--list", action="store_true", help="only say what has run")
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.arms) - set(known))
    if unknown:
        parser.error(f"no arm {', '.join(unknown)}; there are {', '.join(known)}")
    code_sha256()  # now: a source file may change while hours of runs go on
    few_compiled_products()
    for name in chosen.arms or known:
        _, folder = settings_of_arm(ARMS / f"{name}.json", chosen.data)
        if chosen.list or not folder.exists():
            print(state(name, folder))
            continue
        seeds = chosen.seeds or arm_of(ARMS / f"{name}.json").get("seeds", list(SEEDS))
        write_json(REPORTS / f"{name}.json", run_arm(name, chosen.data, seeds, chosen.runs, keep=chosen.keep))


if __name__ == "__main__":
    main()
