"""A published dataset back into a run, as the artefact that the next stages read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pulse_hf import artifacts
from pulse_hf.artifacts import ArtifactError
from pulse_hf.hub.dataset_export import HISTORY, WORDS
from pulse_hf.hub.files import CHECKSUMS, Seal, read_seal
from pulse_hf.schema import SPLITS, Sequence, table_schema

_EVENT = ("user_id", "position", "split", "item_id", "timestamp", "rating", "review")


def place_dataset(folder: Path, run: Path, *, source: str, force: bool = False) -> Path:
    """Write a pulled dataset into a run.

    Args:
        folder: The verified files of one artefact, as :func:`pulse_hf.hub.transfer.pull` gives them.
        run: The run's folder.
        source: Where they came from, ``owner/name@commit``; kept in the manifest.
        force: Replace another version of the artefact.

    Returns:
        The artefact's folder.

    Raises:
        ArtifactError: The folder holds no dataset of ours, its rows contradict each other, or another version of the
            artefact is in the run.
    """
    seal = read_seal(folder)
    if seal.kind not in WORDS:
        raise ArtifactError(f"{source} holds {seal.kind!r}; expected one of {', '.join(WORDS)}")
    settings, seed = _made_by(seal, source)
    fingerprint = artifacts.Fingerprint(
        stage=seal.kind,
        settings={"pulled_from": source} | settings,
        seed=seed,
        parents={one.path: one.sha256 for one in seal.data},
    )

    def make(work: Path) -> dict[str, Any]:
        if seal.kind == "sequences":
            return _sequences(folder, seal, work, cut=settings.get("split", "leave-one-out") != "leave-one-out")
        return _rows(folder, seal, work)

    artifacts.build(run / seal.kind, fingerprint, make, force=force)
    return run / seal.kind


def _made_by(seal: Seal, source: str) -> tuple[dict[str, Any], int]:
    """The settings and the seed that the published artefact was made with.

    Raises:
        ArtifactError: The seal does not tell them.
    """
    told: Any = seal.about.get("made_by")
    try:
        return artifacts.settings_in(told), int(json.loads(told.get("seed", "0")))
    except (AttributeError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{source}: made_by in its {CHECKSUMS} is {told!r:.80}, expected an artefact's settings and seed; the "
            "dataset was not published by this package. Tell its owner, or pull another."
        ) from error


def _read(folder: Path, seal: Seal, columns: Iterable[str], under: str = "") -> list[dict[str, Any]]:
    """All rows of one table, split after split.

    Raises:
        ArtifactError: A file lacks one of the columns.
    """
    order = {f"{split}.parquet": place for place, split in enumerate((*SPLITS, HISTORY))}
    names = sorted(
        (
            one.path
            for one in seal.data
            if one.path.endswith(".parquet") and str(Path(one.path).parent) == (under or ".")
        ),
        key=lambda name: order.get(Path(name).name, len(order)),
    )
    rows: list[dict[str, Any]] = []
    for name in names:
        table = artifacts.read_table(folder / name)
        missing = sorted(set(columns) - set(table.column_names))
        if missing:
            raise ArtifactError(
                f"{folder / name}: lacks the columns {', '.join(missing)}, has {', '.join(table.column_names)}. Tell "
                "the dataset's owner, or pull another."
            )
        rows += table.to_pylist()
    return rows


def _rows(folder: Path, seal: Seal, work: Path) -> dict[str, Any]:
    """Tables with rows per decision; columns added for readers go."""
    counts = {}
    for table in (seal.kind, *(("trees",) if seal.kind == "thoughts" else ())):
        names = table_schema(table).names
        rows = _read(folder, seal, names, "" if table == seal.kind else table)
        artifacts.write_table(work / f"{table}.parquet", table, [{name: row[name] for name in names} for row in rows])
        counts[table] = len(rows)
    return {"rows": {"read": counts[seal.kind], "kept": counts[seal.kind], "dropped": {}}}


def _sequences(folder: Path, seal: Seal, work: Path, *, cut: bool) -> dict[str, Any]:
    """Events back into one row per user, the catalogue beside them."""
    events: dict[str, list[dict[str, Any]]] = {}
    for row in _read(folder, seal, _EVENT):
        events.setdefault(row["user_id"], []).append(row)
    rows = [_user(user, sorted(mine, key=lambda row: row["position"]), cut=cut) for user, mine in events.items()]
    artifacts.write_table(work / "sequences.parquet", "sequences", rows)
    items = _read(folder, seal, table_schema("items").names, "items")
    known = {row["item_id"] for row in items}
    unknown = sorted({item for row in rows for item in row["item_ids"]} - known)
    if unknown:
        raise ArtifactError(
            f"{folder}: {len(unknown)} items of the events are not in the catalogue, first {unknown[0]!r}"
        )
    artifacts.write_table(work / "items.parquet", "items", items)
    total = sum(len(row["item_ids"]) for row in rows)
    return {"rows": {"read": total, "kept": total, "dropped": {}}}


def _user(user: str, rows: list[dict[str, Any]], *, cut: bool) -> dict[str, Any]:
    if [row["position"] for row in rows] != list(range(len(rows))):
        raise ArtifactError(f"user {user}: positions {[row['position'] for row in rows][:10]}; expected 0, 1, 2, ...")
    splits, items = [row["split"] for row in rows], [row["item_id"] for row in rows]
    alone = Sequence(user, tuple(items), (), (), ())
    # A user without targets (strict_time) has other splits than leaving the last two events out would give.
    cut_by_hand = cut or splits != [alone.split_of(position) or HISTORY for position in range(len(items))]
    return {
        "user_id": user,
        "item_ids": items,
        "timestamps": [row["timestamp"] for row in rows] if rows[0]["timestamp"] is not None else [],
        "ratings": [row["rating"] for row in rows],
        "reviews": [row["review"] for row in rows],
        "cut": [splits.count("train"), _find(splits, "validation"), _find(splits, "test")] if cut_by_hand else None,
    }


def _find(splits: list[str], wanted: str) -> int:
    return splits.index(wanted) if wanted in splits else -1
