"""Fitting SASRec: seconds an epoch and quality, beside a public implementation where one is installed.

    python scripts/bench_sasrec.py --reviews interactions.jsonl.gz [--order position] [--epochs 5]

Ours finds its number of epochs on validation, then fits on everything before the test event and ranks 1 + 9 uniform
candidates. With RecTools installed (``pip install "rectools[torch]"``; it is no dependency of this project) its SASRec
of the same size and loss (softmax over the catalogue), with batches of 128 people where ours has 512 targets, is
fitted for ``--epochs`` epochs on the same events, as ours is, and both rank the same candidates of the same users. The
ratio is RecTools' seconds an epoch over ours. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pulse_hf.data.columns import Columns
from pulse_hf.data.prepare import PrepareSettings, prepare
from pulse_hf.data.sequences import decisions, load_items, load_sequences, sample_decisions
from pulse_hf.metrics import rank_metrics
from pulse_hf.retrieval.candidates import CandidateSettings, draw_candidates
from pulse_hf.schema import CandidateSet, Sequence
from pulse_hf.training.sasrec import fit_sasrec
from pulse_hf.training.sequential import SequentialSettings

Rank = Callable[[str, list[str]], Any]


def hit_rate(sets: list[CandidateSet], users: list[str], score: Rank) -> float:
    """HR@1 of the candidate sets, ties at their expected value."""
    rows = [np.asarray(score(user, list(one.item_ids))) for user, one in zip(users, sets, strict=True)]
    targets = [one.target_index for one in sets]
    return float(rank_metrics(rows, targets, system="sasrec")["hr@1"].mean())


def with_rectools(sequences: list[Sequence], settings: SequentialSettings, epochs: int) -> tuple[float, Rank]:
    """Seconds of a fit on everything before the test event, and how to score."""
    import pandas as pd
    from rectools import Columns as Names
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    rows = [
        (one.user_id, item, 1.0, pd.Timestamp("2020-01-01") + pd.Timedelta(minutes=place))
        for one in sequences
        for place, item in enumerate(one.item_ids[: max(1, len(one) - 1)] if len(one) >= 3 else one.item_ids)
    ]
    table = pd.DataFrame(rows, columns=[Names.User, Names.Item, Names.Weight, Names.Datetime])
    dataset = Dataset.construct(table)
    model = SASRecModel(
        n_blocks=settings.num_layers,
        n_heads=settings.num_heads,
        n_factors=settings.dim,
        session_max_len=settings.max_length,
        dropout_rate=settings.dropout,
        lr=settings.learning_rate,
        batch_size=128,
        loss="softmax",
        epochs=epochs,
        verbose=0,
    )
    started = time.perf_counter()
    model.fit(dataset)
    seconds = time.perf_counter() - started
    kept: dict[str, dict[str, float]] = {}

    def score(user: str, items: list[str]) -> list[float]:
        if user not in kept:
            found = model.recommend(
                users=[user], dataset=dataset, k=len(dataset.item_id_map.external_ids), filter_viewed=False
            )
            kept[user] = dict(zip(found[Names.Item], found[Names.Score], strict=True))
        return [kept[user].get(item, -1e9) for item in items]

    return seconds, score


def main() -> None:
    """Fit, rank, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", type=Path, required=True)
    parser.add_argument("--order", default="position")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of the comparison with RecTools")
    parser.add_argument("--users", type=int, default=2000, help="test users that both rank for")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        form = PrepareSettings(
            "table",
            str(options.reviews),
            columns=Columns(order=options.order),
            deduplicate=False,
            min_user_events=0,
            min_item_events=0,
        )
        prepare(Path(folder), form, seed=0)
        sequences, items = load_sequences(Path(folder)), [one.item_id for one in load_items(Path(folder))]
    index = {item: place for place, item in enumerate(items, start=1)}
    by_user = {one.user_id: one for one in sequences}
    chosen = decisions(sequences, "test")
    sets = draw_candidates(sequences, items, chosen, CandidateSettings(), seed=options.seed)
    users = [one.user_id for one in chosen]
    settings = SequentialSettings(dim=64)

    def indices(one: Sequence, number: int) -> list[int]:
        return [index[item] for item in one.item_ids[:number]]

    def fitted(epochs: int) -> tuple[float, Rank]:
        """Everything before the test event, for a fixed number of epochs."""
        rows = [indices(one, len(one) - 1 if len(one) >= 3 else len(one)) for one in sequences]
        started = time.perf_counter()
        model, _ = fit_sasrec(rows, [], len(items), replace(settings, epochs=epochs), seed=options.seed)
        seconds = time.perf_counter() - started

        def score(user: str, names: list[str]) -> Any:
            history = indices(by_user[user], len(by_user[user]) - 1)
            return model.scores([history])[0, [index[name] for name in names]].detach().numpy()

        return seconds, score

    started = time.perf_counter()
    validation = [
        (indices(by_user[one.user_id], one.position), index[by_user[one.user_id].item_ids[one.position]])
        for one in sample_decisions(decisions(sequences, "validation"), settings.max_validation_users, options.seed)
    ]
    _, report = fit_sasrec(
        [indices(one, one.num_train) for one in sequences], validation, len(items), settings, seed=options.seed
    )
    _, score = fitted(report.best_epoch)
    seconds = time.perf_counter() - started
    with torch.inference_mode():
        quality = hit_rate(sets, users, score)
    print(
        f"HR@1 {quality:.4f} of {len(sets):,} users after {seconds:.0f} s "
        f"({report.best_epoch} epochs found on validation, then refitted)"
    )
    record: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "users": len(sequences),
        "hr@1": round(quality, 4),
        "seconds": round(seconds, 1),
        "epochs": report.best_epoch,
    }
    ratio = None
    if importlib.util.find_spec("rectools") is None:
        print("RecTools is not installed: no comparison")
    else:
        own_seconds, own_score = fitted(options.epochs)
        their_seconds, their_score = with_rectools(sequences, settings, options.epochs)
        with torch.inference_mode():
            qualities = [
                hit_rate(sets[: options.users], users[: options.users], one) for one in (own_score, their_score)
            ]
        ratio = round(their_seconds / own_seconds, 3)
        record |= {
            "epochs_compared": options.epochs,
            "seconds_per_epoch": [round(one / options.epochs, 3) for one in (own_seconds, their_seconds)],
            "hr@1_compared": [round(one, 4) for one in qualities],
        }
        print(f"{options.epochs} epochs: ours {own_seconds:.1f} s, RecTools {their_seconds:.1f} s; HR@1 {qualities}")
    print(json.dumps({"name": "sasrec", "ratio": ratio, "limit": None, "settings": record}))


if __name__ == "__main__":
    main()
