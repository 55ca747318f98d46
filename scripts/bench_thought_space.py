"""Training a Thought Space beside sentence-transformers' own trainer on the same pairs.

    python scripts/bench_thought_space.py [--run runs/demo] [--pairs 768]

Both train one shared MiniLM on (behaviour, rationale) pairs of a finished run by InfoNCE over the batch, one epoch in
float32, all layers; the loss of one batch is compared before anything is timed. Ours puts texts of like length into a
batch and tokenises once. A third way trains the upper two layers over kept lower states, as the preset ``small`` does.
The limit counts tokens: what sentence-transformers pads over what there is to read. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from pulse_hf.artifacts import read_table
from pulse_hf.data.sequences import items_by_id, sequences_by_user
from pulse_hf.models.embedded import resolve_model
from pulse_hf.training.losses import info_nce_loss
from pulse_hf.training.thought_pairs import Pair, training_pairs
from pulse_hf.training.thought_space import ThoughtSpaceSettings, start_model
from pulse_hf.training.thought_space_fit import fit
from pulse_hf.training.thought_space_towers import SIDES, TextStates, TrainableSpace


def pairs_of(run: Path, settings: ThoughtSpaceSettings, number: int) -> list[Pair]:
    """One pair of each user, so that no two of a batch share a person."""
    rows = read_table(run / "rationales" / "rationales.parquet").to_pylist()
    sequences = sequences_by_user(run)
    items = items_by_id(run)
    found = {pair.user_id: pair for pair in training_pairs(rows, sequences, items, settings)}
    by_text = {pair.rationale: pair for pair in found.values()}
    return list({pair.target_id + pair.rationale: pair for pair in by_text.values()}.values())[:number]


def space_of(settings: ThoughtSpaceSettings) -> TrainableSpace:
    """A fresh space, in float32."""
    model = start_model(settings)
    states = {
        side: TextStates(model, side, settings.trained_layers, bf16=False, max_bytes=8 * 2**30) for side in SIDES
    }
    return TrainableSpace(model, states, settings.trained_layers)


def main() -> None:
    """Compare the loss, time the ways, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--pairs", type=int, default=768)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    options = parser.parse_args()
    settings = ThoughtSpaceSettings(
        trained_layers=None,
        projection_dim=0,
        num_negatives=None,
        symmetric=False,
        temperature=0.05,
        epochs=1,
        batch_size=options.batch,
        precision="float32",
        max_history_tokens=options.tokens,
        max_rationale_tokens=options.tokens,
    )
    location = str(resolve_model(settings.encoder)[0])
    pairs = pairs_of(options.run, settings, options.pairs)

    theirs = SentenceTransformer(location, device="cpu")
    theirs.max_seq_length = options.tokens
    loss = MultipleNegativesRankingLoss(theirs, scale=1 / settings.temperature)
    ours = space_of(settings)
    some = pairs[: options.batch]
    texts = {"history": [pair.training_history for pair in some], "rationale": [pair.rationale for pair in some]}
    for side in SIDES:
        ours.states[side].add(texts[side])
    with torch.no_grad():
        theirs.eval()
        batches = [theirs.preprocess(texts[side]) for side in SIDES]
        value = float(loss(batches, torch.zeros(0)))
        own = float(info_nce_loss(*(ours.embed(side, texts[side]) for side in SIDES), settings.temperature))
    if abs(value - own) > 1e-3:
        raise SystemExit(f"the losses differ: sentence-transformers {value}, ours {own}")

    seconds = {}
    for name, layers in (("ours", None), ("upper two layers", 2)):
        space = space_of(replace(settings, trained_layers=layers))
        started = time.perf_counter()
        fit(space, pairs, pairs[:2], replace(settings, trained_layers=layers), seed=0)
        seconds[name] = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=options.batch,
            learning_rate=2e-5,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        rows = Dataset.from_dict(
            {"anchor": [pair.training_history for pair in pairs], "positive": [pair.rationale for pair in pairs]}
        )
        trainer = SentenceTransformerTrainer(theirs, arguments, train_dataset=rows, loss=loss)
        started = time.perf_counter()
        trainer.train()
        seconds["sentence-transformers"] = time.perf_counter() - started

    lengths = {side: [ours.states[side].length(text) for text in _texts(ours, pairs, side)] for side in SIDES}
    padded = sum(
        len(part) * max(part)
        for side in SIDES
        for part in np.array_split(np.random.default_rng(0).permutation(lengths[side]), len(pairs) // options.batch)
    )
    limit = float(padded) / sum(map(sum, lengths.values()))
    ratio = seconds["sentence-transformers"] / seconds["ours"]
    for name, taken in seconds.items():
        print(f"{name}: {taken:.1f} s, {len(pairs) / taken:.1f} pairs/s")
    print(f"loss {own:.4f} and {value:.4f}; {ratio:.2f} times sentence-transformers, by padding at most {limit:.2f}")
    record = {
        "pairs": len(pairs),
        "batch": options.batch,
        "threads": torch.get_num_threads(),
        "tokens": {side: [int(np.percentile(lengths[side], p)) for p in (10, 50, 90)] for side in SIDES},
        "seconds": {name: round(taken, 2) for name, taken in seconds.items()},
    }
    print(
        json.dumps({"name": "thought-space", "ratio": round(ratio, 3), "limit": round(limit, 3), "settings": record})
    )


def _texts(space: TrainableSpace, pairs: list[Pair], side: str) -> list[str]:
    texts = [pair.training_history if side == "history" else pair.rationale for pair in pairs]
    space.states[side].add(texts)
    return texts


if __name__ == "__main__":
    main()
