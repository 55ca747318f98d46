"""The second part of ``outside_judge.py``: is a written explanation found by what is known of its reader?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import outside_judge_data as data
import outside_judge_statistics as measures
import torch
from numpy.typing import NDArray
from outside_judge_data import Explained
from outside_judge_fits import FROZEN, Study, about, differences, spaces_over, spans
from sklearn.feature_extraction.text import TfidfVectorizer

from pulse_hf import artifacts
from pulse_hf.training.thought_space import ThoughtSpaceSettings

DOMAINS = ("amazon", "google")
NEGATIVES = 10
SETTINGS = ThoughtSpaceSettings(epochs=3, num_folds=0, max_history_tokens=128)


def xrec(study: Study, masking: str, towers: Sequence[str], candidates: int) -> dict[str, Any]:
    """Fit, score and judge.

    Args:
        study: Where things are.
        masking: See :func:`outside_judge_data.read_explained`.
        towers: Which of ``"shared"`` and ``"two"``.
        candidates: Explanations to choose from, one of each held-out user.
    """
    parts = {
        domain: data.split_explained(data.read_explained(study.data, domain, masking), candidates, study.seed)
        for domain in DOMAINS
    }
    rows: list[dict[str, Any]] = []
    for domain, (seen, judged) in parts.items():
        scored = {"chance": np.zeros((len(judged),) * 2), "shared words (tf-idf)": shared_words(seen, judged)}
        seconds, folders = dict.fromkeys(scored, 0.0), {}
        for kind in towers:
            settings = replace(SETTINGS, shared_towers=kind == "shared")
            fits = {
                f"trained on {source}, {kind}": study.fit(
                    f"xrec-{masking}-{source}-{kind}", data.explained_pairs(parts[source][0]), settings
                )
                for source in DOMAINS
            }
            parents = {name: artifacts.content_sha256(folder) for name, folder in fits.items()}
            parents["texts"] = artifacts.sha256_of_text(text for row in judged for text in astuple(row))
            found, taken = study.kept(
                f"xrec-{masking}-scores-{domain}-{kind}",
                parents,
                lambda j=judged, s=settings, f=fits: all_cosines(j, s, f),
            )
            scored |= found
            seconds |= dict.fromkeys(found, taken)
            folders |= fits
        measured = {name: measures.retrieval(values, NEGATIVES) for name, values in scored.items()}
        for name, values in measured.items():
            known = about(folders.get(name))
            settings = {**asdict(SETTINGS), "shared_towers": not name.endswith("two"), "candidates": len(judged)}
            row = {
                "scorer": name,
                "judged_on": domain,
                "masking": masking,
                **figures(values, measured[FROZEN], study.seed),
                **known,
            }
            rows.append(study.row(settings, seconds[name] + known.get("fit_seconds", 0.0), **row))
    counts = {domain: {"training_rows": len(seen), "judged": len(judged)} for domain, (seen, judged) in parts.items()}
    return {"counts": counts, "rows": rows}


def figures(
    values: Mapping[str, NDArray[np.float64]], frozen: Mapping[str, NDArray[np.float64]], seed: int
) -> dict[str, Any]:
    """What a row says: every measure with its interval, and against the frozen encoder."""
    mine, theirs = (np.stack(list(some.values()), axis=1) for some in (values, frozen))
    against = dict(zip(values, differences(mine, theirs, seed), strict=True))
    return {**dict(zip(values, spans(mine, seed), strict=True)), "over_frozen": against}


def all_cosines(
    judged: Sequence[Explained], settings: ThoughtSpaceSettings, folders: Mapping[str, Path]
) -> dict[str, torch.Tensor]:
    """(n, n) cosines of users with explanations by each space, and, untrained, of items with explanations."""
    texts = [row.explanation for row in judged]
    spaces = spaces_over(settings, folders)

    def cosines(name: str, queries: Sequence[str]) -> torch.Tensor:
        history, rationale = spaces[name].vectors("history", queries), spaces[name].vectors("rationale", texts)
        return torch.from_numpy(history @ rationale.T)

    scores = {name: cosines(name, [row.query for row in judged]) for name in spaces}
    return {**scores, "frozen, asked with the item": cosines(FROZEN, [row.item_text for row in judged])}


def shared_words(seen: Sequence[Explained], judged: Sequence[Explained]) -> NDArray[np.float64]:
    """(n, n) cosines of word counts, weighted by how rare the words are in the training rows."""
    words = TfidfVectorizer(sublinear_tf=True, stop_words="english")
    words.fit([text for row in seen for text in (row.query, row.explanation)])
    queries, texts = (words.transform([getattr(row, key) for row in judged]) for key in ("query", "explanation"))
    return np.asarray((queries @ texts.T).toarray())
