"""Does an edited reason steer? Only the embedded world can tell, because there it is known what items serve.

For each of some users the drafted reason is replaced by one that names another known motive ("They care about
<phrase>."), and the retrieved candidates are ranked anew. It counts as steered if the items that serve the motive
stand higher on average than before. As a control the same rankings are read for a third motive that nobody asked for.

    python scripts/steering.py --run runs/demo
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from pulse_hf.artifacts import write_json
from pulse_hf.data.world.stage import load_truth
from pulse_hf.recommender import NUM_RETRIEVED, PulseRecommender, Recommendation


def steering(recommender: PulseRecommender, truth: dict[str, Any], *, users: int, seed: int = 0) -> dict[str, Any]:
    """How often an edited reason raises what serves its motive.

    Args:
        recommender: From a run of the embedded world.
        truth: Of the same run.
        users: How many users, drawn without replacement.
        seed: Of the draws.

    Returns:
        ``steered`` and ``control``: shares of users whose items of the motive rose; ``places``: mean places risen;
        ``first_ten``: mean number of such items among the first ten before and after.
    """
    rng = np.random.default_rng(seed)
    names, served = truth["motive_names"], np.array(truth["served"])
    place = {item_id: number for number, item_id in enumerate(truth["item_ids"])}
    rows = []
    for user_id in rng.choice(sorted(recommender.users), users, replace=False).tolist():
        history = recommender.history_of(user_id)
        wanted, third = rng.permutation([m for m in range(len(names)) if m not in truth["users"][user_id]])[:2]
        phrase = str(rng.choice(truth["motives"][names[wanted]]))
        before = recommender.recommend(history, k=NUM_RETRIEVED)
        after = recommender.recommend(history, k=NUM_RETRIEVED, rationale=f"They care about {phrase}.")

        def serving(ranking: list[Recommendation], motive: int) -> np.ndarray:
            return np.flatnonzero([served[place[one.item_id], motive] > 0 for one in ranking])

        if not len(serving(before, wanted)) or not len(serving(before, third)):
            raise ValueError(f"no candidate of {user_id} serves the motive; there is nothing to raise")
        rose = [serving(before, motive).mean() - serving(after, motive).mean() for motive in (wanted, third)]
        rows.append([*rose, *((serving(ranking, wanted) < 10).sum() for ranking in (before, after))])
    table = np.array(rows, dtype=float)
    return {
        "users": len(table),
        "steered": float((table[:, 0] > 0).mean()),
        "control": float((table[:, 1] > 0).mean()),
        "places": float(table[:, 0].mean()),
        "first_ten": [float(value) for value in table[:, 2:].mean(axis=0)],
    }


def main() -> None:
    """Print and keep the figures of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("hub_cards/reports/steering-of-demo.json"))
    given = parser.parse_args()
    truth = load_truth(given.run)
    if truth is None:
        raise SystemExit(f"{given.run} is no run of the embedded world; only there it is known what items serve")
    found = steering(PulseRecommender.from_run(given.run), truth, users=given.users, seed=given.seed)
    print(found)
    command = f"python scripts/steering.py --run {given.run} --users {given.users} --seed {given.seed}"
    write_json(given.out, {"command": command, "run": given.run.name, "seed": given.seed, **found})


if __name__ == "__main__":
    main()
