"""The leak audit: has any stage seen a validation or test target?

It trusts no flag and no record alone. What each stage reads is rebuilt from the sequences and compared
with what the stage recorded; rebuilt again with all targets swapped, it must not change; neighbours and
thoughts of a sample are made again in both worlds; and the stored tables are held against rules that a
leak would break.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Series
from pathlib import Path
from typing import Any

from pulse_hf.artifacts import ArtifactError, content_sha256, parents_of, read_manifest, sha256_of_file, verify
from pulse_hf.evaluation.cost import STAGES
from pulse_hf.evaluation.finished_run import FinishedRun
from pulse_hf.evaluation.lending import lend_again
from pulse_hf.evaluation.stage_inputs import redrawn, sha256_of_inputs, stage_texts
from pulse_hf.evaluation.swapped_targets import SwappedTargets
from pulse_hf.schema import SPLITS, Decision, Sequence, fold_of

# A fair shuffle fails by chance once in a hundred thousand audits.
_UNLIKELY = 1e-5
_COSINE_SLACK = 1e-3

Check = dict[str, Any]

__all__ = ["audit"]


def audit(run: Path, *, users: int = 8, seed: int = 0) -> dict[str, Any]:
    """Check a finished run for leaks.

    Args:
        run: The run folder; stages that have not run are not checked.
        users: Test users whose thoughts are made again with and without swapped targets.
        seed: Which users and which other items.

    Returns:
        ``{"passed": bool, "checks": [{"name", "passed", "detail"}]}``.
    """
    finished = FinishedRun(run)
    swapped = SwappedTargets(finished, seed)
    checks = [
        _check("artefacts are whole", lambda: _whole(finished)),
        _check("stages were made from each other", lambda: _parents(finished)),
        _check("recorded inputs are the rebuilt ones", lambda: _recorded(finished)),
        _check("fits saw training events only", lambda: _fits(finished)),
        _check("training inputs ignore validation and test targets", swapped.training_inputs),
        _check("all inputs ignore test targets", swapped.all_inputs),
        _check("no canary in any prompt", swapped.canaries),
        _check("neighbours lend training items only", lambda: _neighbours(finished, swapped)),
        _check("thoughts made again ignore their targets", lambda: _thoughts(finished, swapped, users, seed)),
        _check("chosen leaves and agreements are those of the trees", lambda: _trees(finished, users, seed)),
        _check("systems are asked without the target", lambda: _asked(finished)),
        _check("candidate sets are sound", lambda: _candidates(finished)),
        _check("rationales explain training targets only", lambda: _rationales(finished)),
        _check("encoders are frozen", lambda: _frozen(finished)),
    ]
    return {"passed": all(check["passed"] for check in checks), "checks": checks}


def _check(name: str, examine: Callable[[], tuple[list[str], str]]) -> Check:
    """Run one check; a check that cannot be run has not been passed."""
    try:
        problems, examined = examine()
    except Exception as error:  # whatever a damaged file makes a library say
        problems, examined = [f"could not be examined: {type(error).__name__}: {error}"], ""
    return {"name": name, "passed": not problems, "detail": "; ".join(problems[:5]) or examined}


def _present(finished: FinishedRun) -> list[str]:
    return [folder for folder in STAGES.values() if finished.has(folder)]


def _whole(finished: FinishedRun) -> tuple[list[str], str]:
    problems = []
    for folder in _present(finished):
        try:
            verify(finished.run / folder)
        except ArtifactError as error:
            problems.append(str(error).replace("\n", " "))
    return problems, f"sha256 of every file of {', '.join(_present(finished))}"


def _parents(finished: FinishedRun) -> tuple[list[str], str]:
    compared = [
        (folder, parent, recorded)
        for folder in _present(finished)
        for parent, recorded in parents_of(finished.run / folder).items()
        if parent in STAGES.values()
    ]
    problems = [
        f"{folder} was made from another {parent} than the one that is here"
        for folder, parent, recorded in compared
        if not finished.has(parent) or recorded != content_sha256(finished.run / parent)
    ]
    return problems, f"{len(compared)} recorded parents"


def require_one_run(run: Path) -> None:
    """See that a run's stages were made from each other, before hours are spent on scoring what is stale.

    Raises:
        ArtifactError: They were not; each that has to be made anew is named.
    """
    problems, _ = _parents(FinishedRun(run))
    if problems:
        raise ArtifactError(f"{run}: {'; '.join(problems)}. Make these stages anew first (--force), or all: pulse run")


def _recorded(finished: FinishedRun) -> tuple[list[str], str]:
    rebuilt = sha256_of_inputs(stage_texts(finished, finished.sequences))
    problems, compared = [], []
    for folder in _present(finished):
        if folder == "sequences":
            continue  # its inputs are the raw files themselves
        if finished.pulled(folder):  # made elsewhere, from people of other names
            compared.append(f"not {folder}, which was pulled")
            continue
        recorded = read_manifest(finished.run / folder)["counts"].get("inputs_sha256", {})
        if not recorded:
            problems.append(f"{folder} recorded no inputs")
        for name, sha256 in recorded.items():
            compared.append(name)
            if rebuilt.get(name) != sha256:
                problems.append(f"{folder} read another {name} than its sequences allow")
    return problems, ", ".join(compared)


def _fits(finished: FinishedRun) -> tuple[list[str], str]:
    """Targets that each SASRec counted while fitting, the baselines' ones, too, against how many there are."""
    if not finished.has("sequential"):
        return [], "no sequential models in this run"
    settings = finished.settings("sequential")
    reports = dict(read_manifest(finished.run / "sequential")["counts"]["fits"])
    if finished.has("baselines"):  # those of SASRec's kind count their targets, too
        fits = read_manifest(finished.run / "baselines")["counts"]["fits"]
        reports |= {name: fit for name, fit in fits.items() if "cut_users" in fit}
    problems = []
    for name, report in reports.items():
        _, _, fold = name.partition("-fold-")
        kept = [
            sequence.num_train
            for sequence in finished.sequences
            if not fold or fold_of(sequence.user_id, settings["num_folds"], settings["seed"]) != int(fold)
        ]
        expected = sum(min(events, settings["max_length"] + 1) - 1 for events in kept if events >= 2)
        if report["targets"] != expected:
            problems.append(
                f"{name} was fitted on {report['targets']} targets, its users have {expected} training targets"
            )
    return problems, f"training targets of {', '.join(reports)}"


def _neighbours(finished: FinishedRun, swapped: SwappedTargets) -> tuple[list[str], str]:
    """Stored neighbours against the lenders' training events, and against ones found anew."""
    if not finished.has("sequential"):
        return [], "no similar users in this run"
    by_user = {sequence.user_id: sequence for sequence in finished.sequences}
    lenders = {user_id: sequence.before(sequence.num_train) for user_id, sequence in by_user.items()}
    most = finished.settings("sequential")["neighbour_items"]
    rows = finished.rows("sequential/neighbours.parquet")
    anew = swapped.lent(())
    problems = []
    for row in rows:
        problems += [f"{row['decision_id']}: {wrong}" for wrong in _wrong_loans(row, by_user)]
        decision = Decision(row["user_id"], row["position"], row["split"])
        lent = lend_again(by_user[row["user_id"]], decision, row["user_ids"], row["similarities"], lenders, most)
        if lent != row["item_ids"]:
            problems.append(f"{row['decision_id']}: its neighbours would have lent other items")
        near = anew[row["decision_id"]][2] if row["decision_id"] in anew else row["similarities"]
        apart = max((abs(a - b) for a, b in zip(near, row["similarities"], strict=False)), default=0.0)
        if len(near) != len(row["similarities"]) or apart > _COSINE_SLACK:
            problems.append(f"{row['decision_id']}: its similar users are not those of its history")
    return problems, f"{len(rows):,} decisions, {len(anew):,} found anew"


def _wrong_loans(row: Mapping[str, Any], by_user: Mapping[str, Sequence]) -> Iterable[str]:
    sequence, position = by_user[row["user_id"]], row["position"]
    time = sequence.timestamps[position] if sequence.timestamps else math.inf
    earlier = set()
    for user_id in row["user_ids"]:
        events = by_user[user_id]
        times = events.timestamps or (0,) * len(events)
        earlier |= {events.item_ids[place] for place in range(events.num_train) if times[place] < time}
    for item in row["item_ids"]:
        if item not in earlier:
            yield f"item {item} is in no neighbour's training events before the decision"
    if row["user_id"] in row["user_ids"]:
        yield "the user is a neighbour of himself"


def _thoughts(finished: FinishedRun, swapped: SwappedTargets, users: int, seed: int) -> tuple[list[str], str]:
    """Neighbours, base reasons, trees and agreements of a sample, made again in both worlds and held to the stored."""
    if not finished.has("thoughts"):
        return [], "no thoughts in this run"
    from pulse_hf.evaluation.regenerate import thoughts_again, thoughts_stored

    chosen = _sample(finished.decisions("test"), users, seed)
    before = thoughts_again(finished, swapped.sequences(()), chosen, swapped.lent(()))
    after = thoughts_again(finished, swapped.sequences(("test",)), chosen, swapped.lent(("test",)))
    changed = [key for key, thought in before.items() if not thought.same(after[key])]
    problems = [f"{key}: another thought when the target is swapped" for key in changed]
    engine = finished.settings("thoughts")["engine"]
    if engine != "server" and not finished.pulled("thoughts"):  # what a server writes twice may differ
        stored = thoughts_stored(finished, chosen)
        # What a model draws hangs on the last digits, which hang on who shares its batch: half of the refinements come
        # out otherwise, and a base reason rarely. The latter is held to what is stored, and one in four may differ.
        exact = engine == "extractive"
        others = [key for key, thought in before.items() if not thought.stored_as(stored[key], whole=exact)]
        if len(others) > (0 if exact else len(before) // 4):
            problems += [f"{key}: another thought was stored than its history gives" for key in others]
    return problems, f"{len(before)} test users"


def _trees(finished: FinishedRun, users: int, seed: int) -> tuple[list[str], str]:
    """Every leaf chosen again from its stored tree, and every node of a sample measured again."""
    if not finished.has("thoughts"):
        return [], "no thoughts in this run"
    from pulse_hf.evaluation.stored_trees import wrong_agreements, wrong_choices

    problems, measured = wrong_choices(finished), []
    if not finished.pulled("thoughts"):  # where texts that lead to people were taken out, others agree
        kept = finished.thoughts
        for split in SPLITS:
            measured += _sample([one for one in finished.decisions(split) if one.decision_id in kept], users, seed)
        problems += wrong_agreements(finished, measured)
    return problems, f"{len(finished.thoughts):,} leaves, {len(measured)} trees measured again"


def _asked(finished: FinishedRun) -> tuple[list[str], str]:
    """What every system is asked with: histories that end before the target, counts of training events."""
    from pulse_hf.evaluation.protocol import load_study

    study, problems = load_study(finished.run), []
    by_user = {sequence.user_id: sequence for sequence in finished.sequences}
    decisions = [one.decision for one in finished.sets]
    for decision, history in zip(decisions, study.histories(decisions), strict=True):
        told = by_user[decision.user_id]
        if (history.item_ids, history.reviews) != (
            told.item_ids[: decision.position],
            told.reviews[: decision.position],
        ):
            problems.append(f"{decision.decision_id}: systems are told more or less than what came before it")
    if study.training_counts != Counter(item for one in by_user.values() for item in one.item_ids[: one.num_train]):
        problems.append("items are counted in other events than training ones")
    return problems, f"{len(decisions):,} histories and the counts of items"


def _sample(decisions: Series[Decision], users: int, seed: int) -> list[Decision]:
    from pulse_hf.data.sequences import sample_decisions

    return sample_decisions(list(decisions), min(users, len(decisions)), seed) if decisions and users else []


def _candidates(finished: FinishedRun) -> tuple[list[str], str]:
    """Target once and where stated, negatives distinct, unseen and known; the target's place is even."""
    by_user = {sequence.user_id: sequence for sequence in finished.sequences}
    problems = []
    for one in finished.sets:
        sequence, place = by_user[one.decision.user_id], one.decision.position
        target, history = sequence.item_ids[place], set(sequence.item_ids[:place])
        rules = {
            f"is no {one.split} decision": sequence.split_of(place) == one.split,
            "does not hold its target where it says": one.item_ids[one.target_index] == target,
            "repeats an item": len(set(one.item_ids)) == len(one.item_ids),
            "has a negative from the history": not (set(one.item_ids) - {target}) & history,
            "holds an item outside the catalogue": all(item in finished.items for item in one.item_ids),
        }
        problems += [f"{one.decision_id} {rule}" for rule, kept in rules.items() if not kept]
    if not finished.pulled("candidates"):  # where people have other names than when the sets were drawn
        drawn = {one.decision_id: one for one in redrawn(finished, finished.sequences)}
        others = [one.decision_id for one in finished.sets if drawn.get(one.decision_id) != one]
        problems += [f"{key} has another set than its seed draws" for key in others]
    return problems + _uneven_places(finished), f"{len(finished.sets):,} sets, drawn again"


def _uneven_places(finished: FinishedRun) -> list[str]:
    from scipy.stats import chisquare

    problems = []
    for split in SPLITS:
        sets = [one for one in finished.sets if one.split == split]
        sizes = {len(one.item_ids) for one in sets}
        if len(sizes) == 1 and len(sets) >= 5 * max(sizes):
            counts = Counter(one.target_index for one in sets)
            chance = chisquare([counts[place] for place in range(max(sizes))]).pvalue
            if chance < _UNLIKELY:
                problems.append(f"{split}: the target's place among the candidates is not even (p {chance:.1e})")
    return problems


def _rationales(finished: FinishedRun) -> tuple[list[str], str]:
    if not finished.has("rationales"):
        return [], "no rationales in this run"
    by_user = {sequence.user_id: sequence for sequence in finished.sequences}
    rows = finished.rows("rationales/rationales.parquet")
    wrong = [
        row["decision_id"]
        for row in rows
        if row["split"] != "train" or not 1 <= row["position"] < by_user[row["user_id"]].num_train
    ]
    return [f"{key} is no training target" for key in wrong], f"{len(rows):,} rationales"


def _frozen(finished: FinishedRun) -> tuple[list[str], str]:
    """Encoder weights now against their sha256 when phase I ended; phase II may not have touched them."""
    problems, compared = [], 0
    for folder in ("sequential", "thought_space"):
        if finished.has(folder):
            for name, sha256 in read_manifest(finished.run / folder)["files"].items():
                if name.endswith(".safetensors"):
                    compared += 1
                    path = finished.run / folder / name
                    if not path.exists() or sha256_of_file(path) != sha256:
                        problems.append(f"{folder}/{name} is not what phase I wrote")
    return problems, f"{compared} weight files"
