"""How one folder keeps a recommender.

The folder::

    pulse.json                 identities of base and encoder, tree settings, prompt hashes
    adapter/ score_head.safetensors scorer.json      the tuned scorer (PEFT's own layout; merged/ instead if asked for)
    base/                      the base language model, if it lies on this machine and is small enough to include
    thought_space/             both towers with their processor, and the rationales that vote (vectors and items)
    sequential/                SASRec and the pool of anonymous users it compares with
    catalogue/                 items.parquet, item_vectors.safetensors
    checksums.json             sha256 of all of these
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import TYPE_CHECKING, Any

from pulse_hf.artifacts import (
    ArtifactError,
    finish_replacing,
    read_json,
    read_table,
    read_tensors,
    replacing,
    write_json,
    write_table,
    write_tensors,
)
from pulse_hf.composition import (
    BASE,
    FORMAT_VERSION,
    NoWriterError,
    OtherVersionError,
    Parts,
    base_of,
    compose,
)
from pulse_hf.hub.files import CARD, CHECKSUMS, EVAL_RESULTS, UNSEALED, check_folder, is_data, read_seal, seal_folder
from pulse_hf.hub.model_cards import ModelCards
from pulse_hf.hub.privacy import content_order, without_folders
from pulse_hf.hub.transfer import require_cached
from pulse_hf.models.loading import one_load_at_a_time
from pulse_hf.reasoning.shared_reasons import VECTORS, SharedReasons
from pulse_hf.retrieval.retriever import Pool
from pulse_hf.schema import Item

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pulse_hf.models.sasrec import PulseSASRecModel
    from pulse_hf.models.thought_space import PulseThoughtSpaceModel
    from pulse_hf.reasoning.generator import Generator

RECORD = "pulse.json"
KIND = "recommender"
_FIELDS: dict[str, type] = {
    "base_model": str,
    "encoder": str,
    "seed": int,
    "prompts": dict,
    "neighbours.num_neighbours": int,
    "neighbours.neighbour_items": int,
    "thoughts.engine": str,
    "thoughts.model": str,
    "thoughts.batch_size": int,
    "thoughts.budget": dict,
}
MAX_INCLUDED_BASE_BYTES = 128 * 2**20


def save_parts(parts: Parts, folder: Path, *, merge: bool = False, cards: ModelCards | None = None) -> None:
    """Write everything into one folder; no user of the run is in it.

    The pool of similar users keeps item lists without ids, ratings or words. A base model of at most 128 MiB is
    included if it is a folder or comes with this package; a larger one, and one of the Hub, is named by id and
    revision. The parts may have been loaded from this very folder: it holds the old recommender or the new one
    whatever fails (:func:`pulse_hf.artifacts.replacing`).

    Args:
        parts: What to keep.
        folder: Where to; what an earlier save left there is replaced.
        merge: Keep the language model with the adapter added in instead of the adapter.
        cards: Writes a card and figures beside them.

    Raises:
        ArtifactError: The folder holds something else, or the scorer's files are not those that were loaded.
    """
    _require_loaded_files(parts)
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file, expected a folder or nothing. Name another place.")
    folder.mkdir(parents=True, exist_ok=True)
    finish_replacing(folder)
    with replacing(folder, lambda: _earlier_save(folder), last=CHECKSUMS) as made:
        _write_parts(parts, made, merge=merge)
        if cards is not None:
            _write_card(parts, made, cards)
        seal_folder(made, KIND)


def _require_loaded_files(parts: Parts) -> None:
    """Refuse to copy another adapter than the loaded one: it would stand beside a catalogue that it does not know."""
    from pulse_hf.models.scorer.adapter import ADAPTER, MERGED, files_sha256

    expected, found = parts.scorer_sha256, files_sha256(parts.folder)
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if (parts.folder / MERGED).is_dir():  # a save into this very folder, merged, took the adapter away
        wrong = [name for name in wrong if not name.startswith(f"{ADAPTER}/")]
    if wrong:
        raise ArtifactError(
            f"{parts.folder}: found other files than were loaded, or none ({', '.join(wrong[:3])}): the stage was "
            "made anew, or the folder moved. Load the recommender again, then save it."
        )


def _write_parts(parts: Parts, folder: Path, *, merge: bool) -> None:
    from pulse_hf.models.scorer.adapter import ADAPTER, HEAD, MERGED, save_merged
    from pulse_hf.models.scorer.adapter import RECORD as SCORER_RECORD

    if (parts.folder / MERGED).is_dir():
        copytree(parts.folder / MERGED, folder / MERGED)
    elif merge:
        save_merged(base_of(parts.record, parts.folder), parts.folder, folder / MERGED)
    else:
        # Not PEFT's card: the folder has one of its own.
        copytree(parts.folder / ADAPTER, folder / ADAPTER, ignore=ignore_patterns("README.md"))
    for name in (HEAD, SCORER_RECORD):
        (folder / name).write_bytes((parts.folder / name).read_bytes())
    parts.thought_space.save_pretrained(folder / "thought_space")
    _write_votes(folder / "thought_space" / VECTORS, parts.shared)
    parts.sequential.save_pretrained(folder / "sequential")
    write_tensors(folder / "sequential" / "pool.safetensors", _packed(parts.pool, list(parts.items)))
    write_table(folder / "catalogue" / "items.parquet", "items", parts.items.values())
    _write_vectors(folder / "catalogue" / "item_vectors.safetensors", parts.item_vectors)
    write_json(folder / RECORD, dict(parts.record))
    base = _small_base(parts)
    if base is not None:
        _include_base(parts, base, folder)


def _include_base(parts: Parts, base: Path, folder: Path) -> None:
    """Copy the base model's data, and call it by its name where it was a folder of this machine."""
    from pulse_hf.models.scorer.adapter import ADAPTER
    from pulse_hf.models.scorer.adapter import RECORD as SCORER_RECORD

    def others(where: str, names: list[str]) -> set[str]:
        hidden = {name for name in names if name.startswith(".") or name == "training.json"}
        return hidden | {name for name in names if (Path(where) / name).is_file() and not is_data(name)}

    copytree(base, folder / BASE, ignore=others)
    if not (folder / BASE / "tokenizer.json").is_file():  # its other forms are no data that travels
        parts.processor.tokenizer.save_pretrained(folder / BASE)
    place = str(parts.record["base_model"])
    if without_folders(place) == place:
        return
    record = read_json(folder / RECORD)
    record["base_model"] = without_folders(place)
    if record["thoughts"]["model"] == place:
        record["thoughts"]["model"] = without_folders(place)
    write_json(folder / RECORD, record)
    scorer = read_json(folder / SCORER_RECORD)
    scorer["base"]["id"] = without_folders(place)
    write_json(folder / SCORER_RECORD, scorer)
    config = folder / ADAPTER / "adapter_config.json"
    if config.is_file():
        write_json(config, read_json(config) | {"base_model_name_or_path": without_folders(place)})


def save_published(parts: Parts, folder: Path, cards: ModelCards | None, *, merge: bool = False) -> None:
    """Write the folder as it is published: checked that it works elsewhere, with its card and figures.

    Args:
        parts: What to keep.
        folder: Where to.
        cards: Writes the card; ``None`` where no report is known.
        merge: See :func:`save_parts`.

    Raises:
        ArtifactError: A part lies on this machine only, the folder holds something else, or the scorer's files are not
            those that were loaded.
    """
    _require_loaded_files(parts)
    require_public(parts)
    save_parts(parts, folder, merge=merge, cards=cards)


def _write_card(parts: Parts, folder: Path, cards: ModelCards) -> None:
    from pulse_hf.models.embedded import commit_of
    from pulse_hf.models.scorer.adapter import MERGED, loads_into_plain_base, read_record

    card = cards.recommender(
        read_json(folder / RECORD),
        pool=len(parts.pool.item_ids),
        base_included=(folder / BASE).is_dir(),
        base_revision=commit_of(read_record(folder).base),
        merged=(folder / MERGED).is_dir(),  # whether merged now or when the parts were saved before
        plain_adapter=loads_into_plain_base(folder),
    )
    (folder / CARD).write_text(card, encoding="utf-8")
    if cards.dataset:
        (folder / EVAL_RESULTS).mkdir()
        (folder / EVAL_RESULTS / "pulse.yaml").write_text(cards.eval_results(), encoding="utf-8")


def _earlier_save(folder: Path) -> set[str]:
    """What an earlier save left in the folder: nothing of that stays among new files.

    Raises:
        ArtifactError: The folder holds something else, too.
    """
    earlier = set()
    if (folder / CHECKSUMS).exists():
        earlier = {CHECKSUMS, *(one.path.split("/")[0] for one in read_seal(folder).files)}
    known = {*earlier, *UNSEALED}
    others = sorted(path.name for path in folder.iterdir() if path.name not in known and path.name[0] != ".")
    if others:
        raise ArtifactError(f"{folder} holds other files ({', '.join(others[:5])}); save into a folder of its own")
    return earlier


def _small_base(parts: Parts) -> Path | None:
    """The base model's folder, if there is one and it is small enough to be included; a name of the Hub has none."""
    from pulse_hf.models.embedded import resolve_model

    base = Path(resolve_model(base_of(parts.record, parts.folder))[0])
    size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    return base if base.is_dir() and size <= MAX_INCLUDED_BASE_BYTES else None


def require_public(parts: Parts) -> None:
    """Refuse to publish what would only work on this machine.

    Raises:
        ArtifactError: The base model, the model that writes reasons or the encoder is a local folder and not included.
    """
    included = _small_base(parts) is not None
    names = {
        "the base model": None if included else parts.record["base_model"],
        "the encoder of titles": parts.record["encoder"],
        "the model that writes reasons": parts.record["thoughts"]["model"],
    }
    if included and names["the model that writes reasons"] == parts.record["base_model"]:
        names["the model that writes reasons"] = None
    local = [f"{what} ({name})" for what, name in names.items() if name and Path(name).is_dir()]
    if local:
        raise ArtifactError(
            f"not published: {', '.join(local)} is a folder on this machine. Publish it first and name it owner/name "
            "in the settings, or take one of the Hub."
        )


def named_models(folder: Path, *, writes: bool = True) -> list[str]:
    """The models that a saved recommender only names: its base, the one that writes reasons, the encoder of titles.

    Args:
        folder: Written by :func:`save_parts`.
        writes: Whether its own model writes the reasons.
    """
    from pulse_hf.models.scorer.adapter import MERGED

    record = read_json(folder / RECORD)
    base, thoughts = base_of(record, folder), record["thoughts"]
    named = [] if (folder / MERGED).is_dir() else [base]
    if writes and thoughts["engine"] in ("transformers", "vllm"):
        named.append(base if thoughts["model"] == record["base_model"] else thoughts["model"])
    return list(dict.fromkeys([*named, record["encoder"]]))


@one_load_at_a_time
def load_parts(
    folder: Path,
    generator: Generator | None = None,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    local_files_only: bool = False,
) -> Parts:
    """Restore what :func:`save_parts` wrote.

    Args:
        folder: Written by :func:`save_parts`; every file is compared with its checksum first.
        generator: Writes the reasons, instead of the recorded language model; where that one needs vLLM and it is not
            installed, see :func:`pulse_hf.composition.open_writer`.
        device: See :func:`pulse_hf.composition.compose`.
        dtype: See :func:`pulse_hf.composition.compose`.
        local_files_only: Refuse models that it only names and that are not in the cache.

    Raises:
        ArtifactError: The folder is not one, is damaged, was made with other prompts or another base model, or its
            reasons come from a server and no generator is given.
        ConnectionError: A model that it only names is not here, and the Hub is out of reach or not to be asked.
    """
    finish_replacing(folder)  # of a save that was killed
    if not (folder / RECORD).exists():
        raise ArtifactError(f"{folder} is not a saved recommender (no {RECORD})")
    check_folder(folder)
    record = _record_in(folder)
    if generator is None and record["thoughts"]["engine"] == "server":
        # The address is whoever saved it's to choose, and histories would be sent there.
        raise NoWriterError(
            f"{folder}: reasons were written by the server model {record['thoughts']['model']!r}; pass generator=, "
            "for example pulse_hf.reasoning.server_engine.ServerGenerator('NAME@http://HOST/v1')"
        )
    if local_files_only:
        for name in named_models(folder, writes=generator is None):
            require_cached(name)
    items = {row["item_id"]: Item(**row) for row in read_table(folder / "catalogue" / "items.parquet").to_pylist()}
    vectors = read_tensors(folder / "catalogue" / "item_vectors.safetensors")["item_vectors"].numpy()
    pool = _unpacked(read_tensors(folder / "sequential" / "pool.safetensors"), list(items))
    votes = read_tensors(folder / "thought_space" / VECTORS)

    def pooling(_: PulseSASRecModel) -> Pool:
        return pool

    def voting(space: PulseThoughtSpaceModel) -> SharedReasons:
        places = {item_id: place for place, item_id in enumerate(items)}
        return SharedReasons(votes["vectors"].numpy(), votes["item_indices"].long().numpy(), places, space)

    folders = (folder / "thought_space", folder / "sequential")
    return compose(record, folder, *folders, items, vectors, pooling, voting, generator, device=device, dtype=dtype)


def _record_in(folder: Path) -> dict[str, Any]:
    """What ``pulse.json`` holds, if all that is asked of it is there: who published it may have written it by hand."""
    record = read_json(folder / RECORD)
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise OtherVersionError(f"{folder}: format {version!r}, expected {FORMAT_VERSION}; save it again")
    for place, kind in _FIELDS.items():
        found: Any = record
        for name in place.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        if not isinstance(found, kind) or isinstance(found, bool):
            raise ArtifactError(
                f"{folder / RECORD}: {place} is {found!r:.80}, expected {kind.__name__}; it was changed after it was "
                "saved. Save it again."
            )
    return dict(record)


def _write_votes(path: Path, shared: SharedReasons) -> None:
    """What votes for which item; whose rationale it was is left out, and so is the run's order of people."""
    import torch

    order = content_order(shared.vectors, shared.item_indices[:, None].tolist())
    indices = torch.from_numpy(shared.item_indices[order]).int()
    write_tensors(path, {"vectors": torch.from_numpy(shared.vectors[order]), "item_indices": indices})


def _write_vectors(path: Path, vectors: NDArray[np.float32]) -> None:
    import torch

    write_tensors(path, {"item_vectors": torch.from_numpy(vectors)})


def _packed(pool: Pool, catalogue: list[str]) -> dict[str, Any]:
    """The pool as tensors: vectors, all users' item indices in one row, and where each user's begin.

    In an order of its own: that of a run is one of user ids.
    """
    import torch

    index = {item_id: number for number, item_id in enumerate(catalogue, start=1)}
    rows = [[index[item_id] for item_id in row] for row in pool.item_ids]
    order = content_order(pool.vectors, rows)
    return {
        "vectors": torch.from_numpy(pool.vectors[order]),
        "item_indices": torch.tensor([number for place in order for number in rows[place]], dtype=torch.int32),
        "lengths": torch.tensor([len(rows[place]) for place in order], dtype=torch.int32),
    }


def _unpacked(tensors: Mapping[str, Any], item_ids: list[str]) -> Pool:
    rows, start = [], 0
    indices = tensors["item_indices"].tolist()
    for length in tensors["lengths"].tolist():
        rows.append(tuple(item_ids[index - 1] for index in indices[start : start + length]))
        start += length
    return Pool(tensors["vectors"].numpy(), rows)
