"""How much ranking the whole catalogue for many users at once saves over a loop over the users.

    python scripts/bench_ranking.py [--users 2000] [--items 10000] [--dim 64] [--length 20]

The loop is the straightforward one: encode a user's history, score all items, sort them, look the target up. The
product encodes histories of like length together, scores them by one product of matrices, and counts what beats the
target instead of sorting. Both rank the same users with one random SASRec, and their NDCG@10 is compared before
anything is timed. Multiplications are the same both ways, so the limit counts numbers that pass through memory: the
loop reads the item table for every user and sorts every row, the product reads the table once a batch and every row
three times (finite, above, tied). Of a small catalogue the loop spends most on the calls themselves, which the limit
does not count. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math

import numpy as np
import torch
from bench_scoring import best_seconds

from pulse_hf.models.sasrec import PulseSASRecConfig, PulseSASRecModel
from pulse_hf.training.sasrec import validation_ndcg

BATCH = 1024  # users whose scores the product holds at once
PASSES = 3


def one_by_one(model: PulseSASRecModel, rows: list[tuple[list[int], int]]) -> float:
    """Mean NDCG@10 by a loop over the users."""
    gains = []
    for history, target in rows:
        order = model.scores([history])[0, 1:].argsort(descending=True)
        rank = int((order == target - 1).nonzero()) + 1
        gains.append(1 / math.log2(rank + 1) if rank <= 10 else 0.0)
    return sum(gains) / len(gains)


def main() -> None:
    """Time both ways and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--length", type=int, default=20, help="events of the longest history")
    parser.add_argument("--repeats", type=int, default=5)
    settings = parser.parse_args()
    torch.manual_seed(0)
    config = PulseSASRecConfig(num_items=settings.items, dim=settings.dim, max_events=50, initializer_range=0.5)
    model = PulseSASRecModel(config).eval()
    generator = np.random.default_rng(0)
    rows = []
    for length in generator.integers(1, settings.length + 1, settings.users).tolist():
        history = generator.integers(1, settings.items + 1, length).tolist()
        # A target that the model likes, so that the compared measure is not 0 for all.
        rows.append((history, int(model.scores([history])[0].topk(20).indices[length % 20])))
    difference = abs(one_by_one(model, rows) - validation_ndcg(model, rows, BATCH))
    if difference > 1e-6:
        raise SystemExit(f"the two ways differ by {difference}")
    ways = [lambda: one_by_one(model, rows), lambda: validation_ndcg(model, rows, BATCH)]
    loop_seconds, batched_seconds = best_seconds(ways, settings.repeats)
    apart = settings.dim + 1 + math.log2(settings.items)
    limit = apart / (settings.dim / min(BATCH, settings.users) + 1 + PASSES)
    ratio = loop_seconds / batched_seconds
    print(f"user by user {loop_seconds:.2f} s, in batches {batched_seconds:.2f} s of processor time")
    print(f"{ratio:.2f} times faster; counting numbers that pass through memory, the limit is {limit:.2f}")
    record = vars(settings) | {"threads": torch.get_num_threads(), "batch": BATCH}
    print(
        json.dumps({"name": "full-catalogue", "ratio": round(ratio, 3), "limit": round(limit, 3), "settings": record})
    )


if __name__ == "__main__":
    main()
