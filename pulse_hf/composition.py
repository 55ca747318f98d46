"""What a recommender is composed of, and how one folder keeps it.

The folder::

    pulse.json                 identities of base and encoder, tree settings, prompt hashes
    adapter/ score_head.safetensors scorer.json      the tuned scorer (PEFT's own layout)
    base/                      the base language model, if it is small enough to include
    thought_space/             both towers with their processor, and the rationales that vote (vectors and items)
    sequential/                SASRec and the pool of anonymous users it compares with
    catalogue/                 items.parquet, item_vectors.safetensors
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any

from pulse_hf.artifacts import (
    ArtifactError,
    read_json,
    read_manifest,
    read_table,
    read_tensors,
    write_json,
    write_table,
    write_tensors,
)
from pulse_hf.data.sequences import load_items, load_sequences
from pulse_hf.reasoning.prompts import prompt_hashes
from pulse_hf.reasoning.shared_reasons import VECTORS, SharedReasons, load_shared_reasons
from pulse_hf.schema import Item, Sequence

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pulse_hf.models.sasrec import PulseSASRecModel
    from pulse_hf.models.scorer.modeling_scorer import PulseScorerModel
    from pulse_hf.models.scorer.processing_scorer import PulseScorerProcessor
    from pulse_hf.models.thought_space import PulseThoughtSpaceModel
    from pulse_hf.reasoning.examples import PromptShape
    from pulse_hf.reasoning.generator import Generator

FORMAT_VERSION = 1
RECORD = "pulse.json"
BASE = "base"
MAX_INCLUDED_BASE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Pool:
    """The anonymous users that similar users are sought among.

    Args:
        vectors: ``(num_users, dim)`` SASRec vectors of training events.
        item_ids: Each user's training events, oldest first.
    """

    vectors: NDArray[np.float32]
    item_ids: list[tuple[str, ...]]


@dataclass(frozen=True)
class Parts:
    """Everything a recommender is composed of; made by ``from_run`` and ``from_pretrained``."""

    scorer: PulseScorerModel
    processor: PulseScorerProcessor
    shape: PromptShape
    thought_space: PulseThoughtSpaceModel
    sequential: PulseSASRecModel
    generator: Generator
    items: dict[str, Item]
    item_vectors: NDArray[np.float32]
    pool: Pool
    shared: SharedReasons
    record: Mapping[str, Any]
    folder: Path


def save_parts(parts: Parts, folder: Path) -> None:
    """Write everything into one folder; no user of the run is in it.

    The pool of similar users keeps item lists without ids, ratings or words. A base model of at most
    64 MiB is included, a larger one is named by id and revision.
    """
    from pulse_hf.models.embedded import resolve_model
    from pulse_hf.models.scorer.adapter import ADAPTER, HEAD
    from pulse_hf.models.scorer.adapter import RECORD as SCORER_RECORD

    folder.mkdir(parents=True, exist_ok=True)
    copytree(parts.folder / ADAPTER, folder / ADAPTER, dirs_exist_ok=True)
    for name in (HEAD, SCORER_RECORD):
        (folder / name).write_bytes((parts.folder / name).read_bytes())
    included = parts.folder / BASE
    base = included if included.is_dir() else Path(resolve_model(parts.record["base_model"])[0])
    size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    if base.is_dir() and size <= MAX_INCLUDED_BASE_BYTES:
        copytree(base, folder / BASE, dirs_exist_ok=True)
    parts.thought_space.save_pretrained(folder / "thought_space")
    _write_votes(folder / "thought_space" / VECTORS, parts.shared)
    parts.sequential.save_pretrained(folder / "sequential")
    write_tensors(folder / "sequential" / "pool.safetensors", _packed(parts.pool, list(parts.items)))
    write_table(folder / "catalogue" / "items.parquet", "items", parts.items.values())
    _write_vectors(folder / "catalogue" / "item_vectors.safetensors", parts.item_vectors)
    write_json(folder / RECORD, dict(parts.record))


def load_parts(folder: Path) -> Parts:
    """Restore what :func:`save_parts` wrote.

    Raises:
        ArtifactError: The folder is not one, is damaged, or was made with other prompts or another base model.
    """
    if not (folder / RECORD).exists():
        raise ArtifactError(f"{folder} is not a saved recommender (no {RECORD})")
    record = read_json(folder / RECORD)
    items = {row["item_id"]: Item(**row) for row in read_table(folder / "catalogue" / "items.parquet").to_pylist()}
    vectors = read_tensors(folder / "catalogue" / "item_vectors.safetensors")["item_vectors"].numpy()
    pool = _unpacked(read_tensors(folder / "sequential" / "pool.safetensors"), list(items))
    votes = read_tensors(folder / "thought_space" / VECTORS)

    def voting(space: PulseThoughtSpaceModel) -> SharedReasons:
        places = {item_id: place for place, item_id in enumerate(items)}
        return SharedReasons(votes["vectors"].numpy(), votes["item_indices"].long().numpy(), places, space)

    return _load(record, folder, folder / "thought_space", folder / "sequential", items, vectors, pool, voting)


def parts_of_run(run: Path) -> tuple[Parts, dict[str, Sequence]]:
    """Compose the parts from a finished run.

    Returns:
        The parts, and the run's sequences by user id.

    Raises:
        ArtifactError: A stage is missing.
    """
    from pulse_hf.models.sasrec import PulseSASRecModel
    from pulse_hf.models.scorer.adapter import read_record

    sequential, thoughts = (read_manifest(run / name) for name in ("sequential", "thoughts"))
    scorer = run / "recommender" / "pulse"
    items = {item.item_id: item for item in load_items(run)}
    index = {item_id: number for number, item_id in enumerate(items, start=1)}
    sequences = load_sequences(run)
    training = [sequence.training().item_ids for sequence in sequences]
    model = PulseSASRecModel.from_pretrained(run / "sequential" / "sasrec").eval()
    pool = Pool(model.user_vectors([[index[one] for one in row] for row in training]).cpu().numpy(), training)
    vectors = read_tensors(run / "sequential" / "item_vectors.safetensors")["item_vectors"].numpy()
    sizes = _settings_of(sequential)
    record = {
        "format_version": FORMAT_VERSION,
        "base_model": read_record(scorer).base["id"],
        "encoder": sizes["encoder"],
        "neighbours": {key: sizes[key] for key in ("num_neighbours", "neighbour_items")},
        "thoughts": _settings_of(thoughts),
        "seed": json.loads(thoughts["fingerprint"]["seed"]),
        "prompts": prompt_hashes(),
    }
    folders = (run / "thought_space" / "model", run / "sequential" / "sasrec")
    users = {sequence.user_id: sequence for sequence in sequences}

    def voting(space: PulseThoughtSpaceModel) -> SharedReasons:
        return load_shared_reasons(run, users, list(items), space)

    return _load(record, scorer, *folders, items, vectors, pool, voting), users


def _settings_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's settings as they stand in its fingerprint."""
    start = "settings."
    return {
        key[len(start) :]: json.loads(value) for key, value in manifest["fingerprint"].items() if key.startswith(start)
    }


def _load(
    record: Mapping[str, Any],
    scorer: Path,
    thought_space: Path,
    sequential: Path,
    items: dict[str, Item],
    item_vectors: NDArray[np.float32],
    pool: Pool,
    voting: Callable[[PulseThoughtSpaceModel], SharedReasons],
) -> Parts:
    from pulse_hf.models.sasrec import PulseSASRecModel
    from pulse_hf.models.scorer.adapter import load_scorer, read_record
    from pulse_hf.models.thought_space import PulseThoughtSpaceModel
    from pulse_hf.reasoning.examples import PromptShape
    from pulse_hf.reasoning.generator import open_generator

    changed = sorted(name for name, sha256 in prompt_hashes().items() if record["prompts"].get(name) != sha256)
    if changed:
        raise ArtifactError(
            f"{scorer}: made with other prompts ({', '.join(changed)}); install the pulse_hf it was made with"
        )
    base = str(scorer / BASE) if (scorer / BASE).is_dir() else record["base_model"]
    model, processor = load_scorer(base, scorer)
    thoughts = record["thoughts"]
    space = PulseThoughtSpaceModel.from_pretrained(thought_space).eval()
    sasrec, shared = PulseSASRecModel.from_pretrained(sequential).eval(), voting(space)
    _check_sizes(scorer, len(items), len(item_vectors), sasrec, space, shared)
    writer = base if thoughts["model"] == record["base_model"] else thoughts["model"]
    return Parts(
        scorer=model,
        processor=processor,
        shape=PromptShape.from_dict(read_record(scorer).prompt),
        thought_space=space,
        sequential=sasrec,
        generator=open_generator(thoughts["engine"], writer, batch_size=thoughts["batch_size"]),
        items=items,
        item_vectors=item_vectors,
        pool=pool,
        shared=shared,
        record=record,
        folder=scorer,
    )


def _check_sizes(
    folder: Path,
    num_items: int,
    num_vectors: int,
    sequential: PulseSASRecModel,
    space: PulseThoughtSpaceModel,
    shared: SharedReasons,
) -> None:
    """Refuse parts of different shops: an index would point at another item, without an error of its own."""
    found = {"catalogue": num_items, "item vectors": num_vectors, "sequential model": sequential.config.num_items}
    if len(set(found.values())) > 1:
        counted = ", ".join(f"{name} {number}" for name, number in found.items())
        raise ArtifactError(f"{folder}: the parts count different numbers of items ({counted}). Save it anew.")
    width = space.config.projection_dim or space.tower("rationale").config.hidden_size
    if shared.vectors.shape[1] != width:
        raise ArtifactError(
            f"{folder}: stored rationales have {shared.vectors.shape[1]} numbers, the thought space gives {width}. "
            "Save it anew."
        )


def _write_votes(path: Path, shared: SharedReasons) -> None:
    """What votes for which item; whose rationale it was is left out."""
    import torch

    indices = torch.from_numpy(shared.item_indices).int()
    write_tensors(path, {"vectors": torch.from_numpy(shared.vectors), "item_indices": indices})


def _write_vectors(path: Path, vectors: NDArray[np.float32]) -> None:
    import torch

    write_tensors(path, {"item_vectors": torch.from_numpy(vectors)})


def _packed(pool: Pool, catalogue: list[str]) -> dict[str, Any]:
    """The pool as tensors: vectors, all users' item indices in one row, and where each user's begin."""
    import torch

    index = {item_id: number for number, item_id in enumerate(catalogue, start=1)}
    lengths = [len(row) for row in pool.item_ids]
    return {
        "vectors": torch.from_numpy(pool.vectors),
        "item_indices": torch.tensor([index[item_id] for row in pool.item_ids for item_id in row], dtype=torch.int32),
        "lengths": torch.tensor(lengths, dtype=torch.int32),
    }


def _unpacked(tensors: Mapping[str, Any], item_ids: list[str]) -> Pool:
    rows, start = [], 0
    indices = tensors["item_indices"].tolist()
    for length in tensors["lengths"].tolist():
        rows.append(tuple(item_ids[index - 1] for index in indices[start : start + length]))
        start += length
    return Pool(tensors["vectors"].numpy(), rows)
