"""Stage ``world``: write the embedded shop as raw input, and its truth beside it.

Output files
    reviews.jsonl   user_id, item_id, timestamp, rating, review: what ``prepare`` reads
    items.jsonl     item_id, title
    truth.json      motives, each user's motives, the true utilities; only oracles and faithfulness read it
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pulse_hf.artifacts import (
    MANIFEST,
    Fingerprint,
    build,
    parents_of,
    read_json,
    read_manifest,
    write_json,
    write_text,
)
from pulse_hf.data.world.shop import WorldSettings, make_world


def world(run: Path, settings: WorldSettings, *, seed: int, force: bool = False) -> Path:
    """Generate the shop into ``run/world``.

    Returns:
        The artefact's folder.
    """
    folder = run / "world"

    def make(work: Path) -> dict[str, Any]:
        made = make_world(settings, seed)
        for name, rows in (("reviews", made.reviews), ("items", made.items)):
            write_text(work / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        write_json(work / "truth.json", made.truth)
        return {"synthetic": True, "users": settings.num_users, "items": len(made.items), "rows": len(made.reviews)}

    build(folder, Fingerprint("world", asdict(settings), seed), make, force=force)
    return folder


def is_synthetic(run: Path) -> bool:
    """Whether a run stands on the embedded world: its sequences were prepared from the world that lies in it.

    A world that was made beside somebody's own data, by a mistaken command, says nothing of the run.
    """
    folder, sequences = run / "world", run / "sequences"
    if not (folder / MANIFEST).exists():
        return False
    if not (sequences / MANIFEST).exists():
        return True
    made = read_manifest(folder)["files"]
    return parents_of(sequences).get("reviews") == made["reviews.jsonl"]


def load_truth(run: Path) -> dict[str, Any] | None:
    """The truth of an embedded world, or ``None`` where the run stands on other data."""
    return dict(read_json(run / "world" / "truth.json")) if is_synthetic(run) else None
