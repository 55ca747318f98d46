"""What ``outside_judge.py`` and ``real_rationales.py`` share: kept fits and scores, and how figures are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pulse_hf import artifacts
from pulse_hf.evaluation.statistics import intervals, paired
from pulse_hf.models.device import computes_in_bf16
from pulse_hf.models.embedded import resolve_model
from pulse_hf.models.thought_space import PulseThoughtSpaceModel
from pulse_hf.training.thought_pairs import Pair, inputs_sha256
from pulse_hf.training.thought_space import Fitting, ThoughtSpaceSettings, start_model
from pulse_hf.training.thought_space_towers import SIDES, TextStates, TrainableSpace

FROZEN = "frozen"


@dataclass(frozen=True)
class Study:
    """Where things are, and what stands in every row of the report."""

    data: Path
    work: Path
    seed: int
    command: str

    def row(self, settings: Mapping[str, Any], seconds: float, **figures: Any) -> dict[str, Any]:
        """One row with what it takes to make it again."""
        made = {"command": self.command, "settings": dict(settings), "seed": self.seed, "seconds": round(seconds, 1)}
        return {**figures, **made}

    def fit(self, name: str, pairs: Sequence[Pair], settings: ThoughtSpaceSettings) -> Path:
        """The folder of a space fitted on these pairs, made if it is not there."""
        identity = resolve_model(settings.encoder)[1]
        parents = {"pairs": inputs_sha256(pairs)}
        fingerprint = artifacts.Fingerprint("outside-judge", asdict(settings), self.seed, parents, model=identity)

        def make(folder: Path) -> dict[str, Any]:
            record = Fitting(start_model(settings), list(pairs), settings, self.seed).fit(folder, "model")[2]
            return {key: record[key] for key in ("pairs", "validation", "best_epoch")}

        artifacts.build(self.work / name, fingerprint, make)
        return self.work / name

    def kept(
        self, name: str, parents: Mapping[str, str], make: Callable[[], dict[str, torch.Tensor]]
    ) -> tuple[dict[str, NDArray[np.float64]], float]:
        """Scores that were computed before, or are now, and the seconds that all of them took together."""
        fingerprint = artifacts.Fingerprint("outside-judge-scores", {}, self.seed, parents)

        def compute(folder: Path) -> dict[str, Any]:
            artifacts.write_tensors(folder / "scores.safetensors", make())
            return {}

        artifacts.build(self.work / name, fingerprint, compute)
        seconds = float(artifacts.read_manifest(self.work / name)["seconds"])
        read = artifacts.read_tensors(self.work / name / "scores.safetensors")
        return {key: value.double().numpy() for key, value in read.items()}, seconds


def spaces_over(settings: ThoughtSpaceSettings, folders: Mapping[str, Path]) -> dict[str, TrainableSpace]:
    """The untrained space and the fitted ones, which share the frozen lower states of every text."""
    model, layers = start_model(settings), settings.trained_layers
    bf16, room = computes_in_bf16(model.device.type), settings.max_cache_gib * 2**30
    states = {side: TextStates(model, side, layers, bf16=bf16, max_bytes=room) for side in SIDES}
    fitted = {
        name: PulseThoughtSpaceModel.from_pretrained(str(folder / "model")).to(model.device)
        for name, folder in folders.items()
    }
    return {name: TrainableSpace(space, states, layers) for name, space in {FROZEN: model, **fitted}.items()}


def about(folder: Path | None) -> dict[str, Any]:
    """What is known of a fit, for its row; of no fit, nothing."""
    if folder is None:
        return {}
    manifest = artifacts.read_manifest(folder)
    counts = manifest["counts"]
    return {
        "pairs": counts["pairs"]["fitted"],
        "best_epoch": counts["best_epoch"],
        "validation_mrr": {w: round(counts["validation"][w]["titles"]["mrr"], 5) for w in ("before", "after")},
        "fit_seconds": manifest["seconds"],
    }


def spans(values: NDArray[np.float64], seed: int) -> list[dict[str, float]]:
    """Mean and 95 % interval of each column."""
    return [_rounded(one) for one in intervals(values, seed=seed)]


def differences(first: NDArray[np.float64], second: NDArray[np.float64], seed: int) -> list[dict[str, float]]:
    """Mean difference of each column, its interval and p."""
    return [_rounded(one) for one in paired(first - second, seed=seed)]


def _rounded(one: Any) -> dict[str, float]:
    return {key: round(value, 5) for key, value in asdict(one).items()}
