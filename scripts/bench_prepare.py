"""How long ``prepare`` takes beside a straightforward pandas script on the same file.

    python scripts/bench_prepare.py [--reviews FILE --metadata FILE --order position] [--rows 450000]

Without files a log of the given size is generated (Zipf items, every user in it once at least). Both ways read the
file, keep the first event of each user and item, iterate the 5-core, order the events, join titles and write Parquet;
users, items and events must be equal before anything is timed. Each way runs in a process of its own, in turns, and
the shortest wall time counts. The limit is what pandas takes over what reading the bytes (unzip, Arrow's parser) takes
alone: no way of preparing can be faster than reading. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WAYS = ("pulse", "pandas", "read")


def with_pandas(reviews: Path, metadata: Path | None, order: str, folder: Path) -> dict[str, int]:
    """What most would write: read, de-duplicate, k-core, group, join, write."""
    import pandas as pd

    log = pd.read_json(reviews, lines=True, dtype={"user_id": str, "item_id": str})
    log = log.sort_values(["user_id", order], kind="stable").drop_duplicates(["user_id", "item_id"])
    while True:
        per_user = log.groupby("user_id")["item_id"].transform("size")
        per_item = log.groupby("item_id")["user_id"].transform("size")
        kept = log[(per_user >= 5) & (per_item >= 5)]
        if len(kept) == len(log):
            break
        log = kept
    sequences = log.groupby("user_id").agg({"item_id": list, order: list})
    items = pd.DataFrame({"item_id": log["item_id"].unique()})
    if metadata is not None:
        items = items.merge(pd.read_json(metadata, lines=True, dtype={"item_id": str}), on="item_id", how="left")
    sequences.to_parquet(folder / "sequences.parquet")
    items.to_parquet(folder / "items.parquet")
    return {"users": len(sequences), "items": len(items), "events": len(log)}


def with_pulse(reviews: Path, metadata: Path | None, order: str, folder: Path) -> dict[str, int]:
    """The stage itself, with its account of every row, its report and its manifest."""
    from pulse_hf.artifacts import read_json
    from pulse_hf.data.columns import Columns
    from pulse_hf.data.prepare import PrepareSettings, prepare

    columns = Columns(order=order)
    settings = PrepareSettings("table", str(reviews), str(metadata) if metadata else None, columns=columns)
    result = read_json(prepare(folder, settings, seed=0) / "report.json")["result"]
    return {key: result[key] for key in ("users", "items", "events")}


def only_read(reviews: Path) -> dict[str, int]:
    """Unzip and parse, nothing else."""
    import pyarrow as pa
    from pyarrow import json as arrow_json

    schema = pa.schema({"user_id": pa.string(), "item_id": pa.string()})
    parse = arrow_json.ParseOptions(explicit_schema=schema)
    with gzip.open(reviews) if reviews.suffix == ".gz" else reviews.open("rb") as stream:
        return {"rows": arrow_json.read_json(stream, parse_options=parse).num_rows}


def generate(path: Path, rows: int, seed: int) -> None:
    """A log with popular and rare items: about nine events for each user."""
    rng = random.Random(seed)
    users, items = max(1, rows // 9), max(1, rows // 27)
    weights = [1 / (rank + 10) for rank in range(items)]
    chosen = rng.choices(range(items), weights, k=rows)
    with gzip.open(path, "wt", compresslevel=1) as stream:
        for place, item in enumerate(chosen):
            user = place if place < users else rng.randrange(users)
            stream.write(f'{{"user_id": "{user}", "item_id": "{item}", "position": {place}}}\n')


def run_once(settings: argparse.Namespace) -> None:
    """One way, timed from here on; interpreter and imports of pyarrow or pandas count, as they do for a user."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if settings.way == "read":
            found = only_read(settings.reviews)
        else:
            way = with_pulse if settings.way == "pulse" else with_pandas
            found = way(settings.reviews, settings.metadata, settings.order, Path(folder))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": round(peak), "found": found}))


def measure(settings: argparse.Namespace, way: str) -> dict[str, Any]:
    """One way in a fresh process."""
    command = [sys.executable, __file__, "--way", way, "--reviews", str(settings.reviews), "--order", settings.order]
    command += ["--metadata", str(settings.metadata)] if settings.metadata else []
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def main() -> None:
    """Time the ways in turns and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", type=Path)
    parser.add_argument("--metadata", type=Path)
    parser.add_argument("--order", default="position")
    parser.add_argument("--rows", type=int, default=450_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.way:
        run_once(settings)
        return
    with tempfile.TemporaryDirectory() as folder:
        record = {"reviews": str(settings.reviews or "generated"), "rows": settings.rows, "repeats": settings.repeats}
        if settings.reviews is None:
            settings.reviews = Path(folder) / "log.jsonl.gz"
            generate(settings.reviews, settings.rows, settings.seed)
        runs = [{way: measure(settings, way) for way in WAYS} for _ in range(settings.repeats)]
        record["rows"] = runs[0]["read"]["found"]["rows"]
    for run in runs:
        if run["pulse"]["found"] != run["pandas"]["found"]:
            raise SystemExit(f"the two ways differ: {run['pulse']['found']} and {run['pandas']['found']}")
    seconds = {way: min(run[way]["seconds"] for run in runs) for way in WAYS}
    peak = {way: max(run[way]["peak_mb"] for run in runs) for way in WAYS}
    ratio, limit = seconds["pandas"] / seconds["pulse"], seconds["pandas"] / seconds["read"]
    print(", ".join(f"{way} {seconds[way]:.2f} s, {peak[way]} MB" for way in WAYS), runs[0]["pulse"]["found"])
    print(f"{ratio:.2f} times faster than pandas; reading alone is {limit:.2f} times faster")
    record |= {"seconds": {way: round(value, 3) for way, value in seconds.items()}, "peak_mb": peak}
    print(json.dumps({"name": "prepare", "ratio": round(ratio, 3), "limit": round(limit, 3), "settings": record}))


if __name__ == "__main__":
    main()
