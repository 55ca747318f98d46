"""What a recommender is composed of, and how a finished run becomes one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_hf.artifacts import (
    ArtifactError,
    content_sha256,
    parents_of,
    read_manifest,
    read_tensors,
    seed_of,
    settings_in,
    settings_of,
    verify,
)
from pulse_hf.data.sequences import items_by_id, load_sequences
from pulse_hf.hub.privacy import content_order
from pulse_hf.models.embedded import MINILM_ID, commit_of, pinned_name
from pulse_hf.models.loading import one_load_at_a_time
from pulse_hf.reasoning.prompts import prompt_hashes
from pulse_hf.reasoning.shared_reasons import SharedReasons, load_shared_reasons
from pulse_hf.retrieval.retriever import Pool
from pulse_hf.schema import Item, Sequence

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pulse_hf.models.sasrec import PulseSASRecModel
    from pulse_hf.models.scorer.modeling_scorer import PulseScorerModel
    from pulse_hf.models.scorer.processing_scorer import PulseScorerProcessor
    from pulse_hf.models.thought_space import PulseThoughtSpaceModel
    from pulse_hf.reasoning.examples import PromptShape
    from pulse_hf.reasoning.generator import Generator

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
BASE = "base"


class NoWriterError(ArtifactError):
    """A server wrote a recommender's reasons; which one to ask is for whoever loads it to say."""


class OtherVersionError(ArtifactError):
    """Another version of this package made it: the format or the prompts are others."""


@dataclass(frozen=True)
class Parts:
    """Everything a recommender is composed of; made by ``from_run`` and ``from_pretrained``.

    ``folder`` holds the tuned scorer, which is saved from there, and ``scorer_sha256`` says which files were loaded.
    """

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
    scorer_sha256: Mapping[str, str]


@one_load_at_a_time
def parts_of_run(
    run: Path, *, device: str | None = None, dtype: torch.dtype | None = None
) -> tuple[Parts, dict[str, Sequence]]:
    """Compose the parts from a finished run.

    Args:
        run: The run's folder.
        device: See :func:`compose`.
        dtype: See :func:`compose`.

    Returns:
        The parts, and the run's sequences by user id.

    Raises:
        ArtifactError: A stage is missing, or was made from another one than the one that is here.
    """
    _check_parents(run)
    items = items_by_id(run)
    sequences = load_sequences(run)
    users = {sequence.user_id: sequence for sequence in sequences}
    scorer, sequential = run / "recommender" / "pulse", run / "sequential"

    def pooling(sasrec: PulseSASRecModel) -> Pool:
        return _pool(sasrec, sequences, list(items))

    def voting(space: PulseThoughtSpaceModel) -> SharedReasons:
        return load_shared_reasons(run, users, list(items), space)

    parts = compose(
        _record(run, scorer),
        scorer,
        run / "thought_space" / "model",
        sequential / "sasrec",
        items,
        read_tensors(sequential / "item_vectors.safetensors")["item_vectors"].numpy(),
        pooling,
        voting,
        _server(run),
        device=device,
        dtype=dtype,
    )
    return parts, users


def _check_parents(run: Path) -> None:
    """Refuse stages that are damaged or not made from each other: an index would point at another catalogue's item."""
    for name in ("sequences", "sequential", "thought_space", "thoughts", "recommender", "rationales"):
        verify(run / name)
        for parent, recorded in parents_of(run / name).items():
            if (run / parent).is_dir() and recorded != content_sha256(run / parent):
                raise ArtifactError(
                    f"{run / name} was made from {parent} of sha256 {recorded}, but that of {run / parent} is "
                    f"{content_sha256(run / parent)}. Run the stages after {parent} anew."
                )


def _record(run: Path, scorer: Path) -> dict[str, Any]:
    """What ``pulse.json`` holds of a run."""
    from pulse_hf.models.scorer.adapter import read_record

    sequential, thoughts = (read_manifest(run / name) for name in ("sequential", "thoughts"))
    settings, base = settings_in(sequential["fingerprint"]), read_record(scorer).base
    return {
        "format_version": FORMAT_VERSION,
        "base_model": base["id"],
        "encoder": _pinned(settings["encoder"], sequential),
        "neighbours": {key: settings[key] for key in ("num_neighbours", "neighbour_items")},
        "thoughts": _of_writer(settings_in(thoughts["fingerprint"]), thoughts, base),
        "writer_tokenizer_sha256": thoughts["counts"].get("tokenizer_sha256", ""),
        "seed": seed_of(run / "thoughts"),
        "prompts": prompt_hashes(),
    }


def _pool(sasrec: PulseSASRecModel, sequences: Iterable[Sequence], catalogue: list[str]) -> Pool:
    """The training events of a run's users, and their vectors."""
    index = {item_id: number for number, item_id in enumerate(catalogue, start=1)}
    training = [sequence.training().item_ids for sequence in sequences if sequence.num_train]
    rows = [[index[one] for one in row] for row in training]
    vectors = sasrec.user_vectors(rows).cpu().numpy()
    order = content_order(vectors, rows)  # as it is saved: of equally near users the same ones are taken
    return Pool(vectors[order], [training[place] for place in order])


def _server(run: Path) -> Generator | None:
    """The server that wrote a run's reasons, at its address, which no record keeps; ``None`` if none did."""
    from pulse_hf.reasoning.generator import open_generator

    settings = settings_of(run / "thoughts")
    if settings["engine"] != "server":
        return None
    return open_generator("server", settings["model"], batch_size=settings["batch_size"])


def _of_writer(thoughts: dict[str, Any], manifest: Mapping[str, Any], base: Mapping[str, str]) -> dict[str, Any]:
    """The settings with the commit of a model that writes, and without where a server stands."""
    from pulse_hf.reasoning.server_engine import split_address

    model = thoughts["model"]
    if thoughts["engine"] == "server":
        model = split_address(model)[0]
    elif model != base["id"]:
        pinned = _pinned(model, manifest)
        model = base["id"] if pinned == pinned_name(base) else pinned  # the base model's commit is the scorer's
    return {**thoughts, "model": model}


def _pinned(name: str, manifest: Mapping[str, Any]) -> str:
    """A model of the Hub with the commit that a stage used, so that it stays that one."""
    used = {"id": name.partition("@")[0], "revision": json.loads(manifest["fingerprint"].get("model.revision", '""'))}
    # MiniLM may come from a wheel as well.
    return pinned_name(used) if commit_of(used) and name != MINILM_ID else name


def base_of(record: Mapping[str, Any], folder: Path) -> str:
    """The base model as ``resolve_model`` takes it: included in the folder, or at the commit it was trained on."""
    from pulse_hf.models.scorer.adapter import read_record

    if (folder / BASE).is_dir():
        return str(folder / BASE)
    base = read_record(folder).base
    return pinned_name(base) if commit_of(base) else str(record["base_model"])


def compose(
    record: Mapping[str, Any],
    scorer: Path,
    thought_space: Path,
    sequential: Path,
    items: dict[str, Item],
    item_vectors: NDArray[np.float32],
    pooling: Callable[[PulseSASRecModel], Pool],
    voting: Callable[[PulseThoughtSpaceModel], SharedReasons],
    generator: Generator | None = None,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
) -> Parts:
    """Load the models and put all parts together.

    Args:
        record: What ``pulse.json`` holds.
        scorer: Folder of the tuned scorer.
        thought_space: Folder of the thought space.
        sequential: Folder of SASRec.
        items: The catalogue.
        item_vectors: ``(num_items, dim)`` vectors of the item texts.
        pooling: Makes the users that similar users are sought among, given SASRec.
        voting: Makes the voting rationales, given the thought space.
        generator: Writes the reasons, instead of the recorded language model (see :func:`open_writer`).
        device: Of the language models that score and write; by default a GPU if there is one.
        dtype: Of their weights; by default bfloat16 where the hardware computes in it (the scorer's on a CPU float32).

    Raises:
        ArtifactError: It was made with other prompts or another base model, or a weight is not finite.
        ValueError: ``device`` is not here, or ``dtype`` is none of torch's.
    """
    from pulse_hf.models.device import require_usable
    from pulse_hf.models.folders import check_model_folder
    from pulse_hf.models.sasrec import PulseSASRecModel
    from pulse_hf.models.scorer.adapter import files_sha256, load_scorer, read_record
    from pulse_hf.models.thought_space import PulseThoughtSpaceModel
    from pulse_hf.reasoning.examples import PromptShape

    require_usable(device, dtype)
    changed = sorted(name for name, sha256 in prompt_hashes().items() if record["prompts"].get(name) != sha256)
    if changed:
        raise OtherVersionError(
            f"{scorer}: made with other prompts ({', '.join(changed)}); install the pulse_hf it was made with"
        )
    for folder in (thought_space, sequential):
        check_model_folder(folder)
    base, scorer_sha256 = base_of(record, scorer), files_sha256(scorer)
    model, processor = load_scorer(base, scorer, device=device, dtype=dtype)
    space = PulseThoughtSpaceModel.from_pretrained(thought_space).eval()
    sasrec, shared = PulseSASRecModel.from_pretrained(sequential).eval(), voting(space)
    for name, module in (("scorer", model), ("thought_space", space), ("sequential", sasrec)):
        _require_finite(scorer, name, module.named_parameters())
    _check_sizes(scorer, len(items), len(item_vectors), sasrec, space, shared)
    if generator is None:
        generator = open_writer(record, base, device=device, dtype=dtype)
        _require_writers_words(scorer, record, generator)
    return Parts(
        scorer=model,
        processor=processor,
        shape=PromptShape.from_dict(read_record(scorer).prompt),
        thought_space=space,
        sequential=sasrec,
        generator=generator,
        items=items,
        item_vectors=item_vectors,
        pool=pooling(sasrec),
        shared=shared,
        record=record,
        folder=scorer,
        scorer_sha256=scorer_sha256,
    )


def open_writer(
    record: Mapping[str, Any], base: str, *, device: str | None = None, dtype: torch.dtype | None = None
) -> Generator:
    """The language model that wrote a recommender's reasons, to write more.

    Where vLLM wrote them and is not installed, engine ``transformers`` opens the same model, which is asked with the
    same prompts: only slower, and sampled texts are others.

    Args:
        record: What ``pulse.json`` holds.
        base: The base model, which writes the reasons, too, where the record names no other.
        device: See :func:`compose`.
        dtype: See :func:`compose`.
    """
    from pulse_hf.reasoning.generator import open_generator

    thoughts = record["thoughts"]
    engine, model = thoughts["engine"], base if thoughts["model"] == record["base_model"] else thoughts["model"]
    if engine == "vllm" and find_spec("vllm") is None:
        logger.info("reasons were written by vLLM, which is not installed; %s goes on in this process", model)
        engine = "transformers"
    return open_generator(engine, model, batch_size=thoughts["batch_size"], device=device, dtype=dtype)


def _require_writers_words(folder: Path, record: Mapping[str, Any], generator: Generator) -> None:
    """Refuse a model whose tokenizer is not the one that it wrote the run's reasons with: words would be others."""
    expected, found = record.get("writer_tokenizer_sha256", ""), getattr(generator, "tokenizer_sha256", "")
    if expected not in ("", found):
        raise ArtifactError(
            f"{folder}: its reasons were written with the tokenizer and chat template of sha256 {expected}, but "
            f"{generator.model_id} has {found or 'none'}. Load it with the model that wrote them, with that one's own "
            "tokenizer and chat template."
        )


def _require_finite(folder: Path, part: str, weights: Iterable[tuple[str, Any]]) -> None:
    for name, value in weights:
        if not value.isfinite().all():
            raise ArtifactError(f"{folder}: weight {name} of {part} is not finite; the file is damaged or made to be")


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
