"""How long ``PulseRecommender.recommend`` takes on the demo's model: median and 99th percentile.

    python scripts/bench_recommend.py [--run runs/demo] [--requests 100]

Three kinds of request, one at a time: *given* brings its own reason, *cached* asks again for a history whose tree is
kept, *cold* grows the tree first. The ratio is cold over given: what a reason costs. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pulse_hf.recommender import PulseRecommender


def milliseconds(requests: list[Callable[[], object]]) -> dict[str, float]:
    """Median and 99th percentile of the wall time of each request."""
    taken = []
    for request in requests:
        started = time.perf_counter()
        request()
        taken.append(1000 * (time.perf_counter() - started))
    return {"p50": round(float(np.percentile(taken, 50)), 1), "p99": round(float(np.percentile(taken, 99)), 1)}


def main() -> None:
    """Time the requests and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--requests", type=int, default=100)
    settings = parser.parse_args()
    recommender = PulseRecommender.from_run(settings.run)
    users = list(recommender.users)
    histories = [recommender.history_of(user) for user in users[: settings.requests + 5]]
    for history in histories[:5]:  # warms up
        recommender.recommend(history)
    histories = histories[5:]
    reason = "They always look for making less waste."
    found = {
        "given": milliseconds([lambda h=h: recommender.recommend(h, rationale=reason) for h in histories]),  # type: ignore[misc]
        "cold": milliseconds([lambda h=h: recommender.recommend(h) for h in histories]),  # type: ignore[misc]
        "cached": milliseconds([lambda h=h: recommender.recommend(h) for h in histories[-50:]]),  # type: ignore[misc]
    }
    for kind, row in found.items():
        print(f"{kind}: median {row['p50']} ms, 99th percentile {row['p99']} ms")
    ratio = found["cold"]["p50"] / found["given"]["p50"]
    record = {"requests": len(histories), "threads": torch.get_num_threads(), "milliseconds": found}
    print(json.dumps({"name": "recommend", "ratio": round(ratio, 3), "limit": None, "settings": record}))


if __name__ == "__main__":
    main()
