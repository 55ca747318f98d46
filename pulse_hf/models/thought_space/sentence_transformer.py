"""The Thought Space for people with sentence-transformers: the same vectors, none of our code."""

from __future__ import annotations

import inspect
from copy import deepcopy
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from pulse_hf.models.thought_space.processing_thought_space import forget_use

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Module, Transformer
    from transformers import PreTrainedTokenizerBase

    from pulse_hf.models.thought_space.modeling_thought_space import PulseThoughtSpaceModel

TOLERANCE = 1e-5
_PROBES = ["Bought a kettle.", "5 of 5", "Quiet, repairable, made of bamboo, and it lasts. " * 100]


def export_sentence_transformer(model: PulseThoughtSpaceModel, folder: str | Path) -> None:
    """Write a folder that ``SentenceTransformer(folder)`` loads without this package and without remote code.

    ``encode_query`` reads histories and ``encode_document`` rationales, each cut to its own limit, and both give the
    model's vectors; plain ``encode`` reads rationales. The modules are a ``Router`` over ``Transformer``, ``Pooling``,
    ``Dense`` (where there is a projection) and ``Normalize``; a shared tower is written once. No model card is made.
    What a folder holds is loaded again and compared with the model before it is put in place.

    Args:
        model: A model in float32, with its processor.
        folder: Where to write; must not exist, or be empty.

    Raises:
        FileExistsError: ``folder`` holds something.
        ValueError: The model has no processor or is not in float32, or sentence-transformers gives other vectors
            (as for a tower that needs more than token ids and a mask). Nothing is written then.

    Example:
        ``export_sentence_transformer(PulseThoughtSpaceModel.from_pretrained("my-space"), "my-space-st")``, then
        ``SentenceTransformer("my-space-st").encode_query(["Cork Tray: so quiet. Bamboo Kettle"])`` (titles, the latest
        first, a person's own words after a colon)
    """
    import torch
    from sentence_transformers import SentenceTransformer

    folder = Path(folder)
    if model.processor is None:
        raise ValueError("The model has no processor: load it with from_pretrained, or set model.processor.")
    if model.dtype is not torch.float32 or model.encodes_in_bf16:
        found = model.dtype if model.dtype is not torch.float32 else "encodes_in_bf16"
        raise ValueError(f"Found {found}, expected float32 throughout: load the model with dtype=torch.float32.")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; name a new folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _modules(model, work / "towers").save_pretrained(str(work / "export"), create_model_card=False)
        _compare(model, SentenceTransformer(str(work / "export"), device="cpu", local_files_only=True))
        (work / "export").replace(folder)
    finally:
        rmtree(work)


def _modules(model: PulseThoughtSpaceModel, towers: Path) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router

    histories = _tower(model, "history", towers)
    rationales = histories if _is_shared(model) else _tower(model, "rationale", towers)
    router = Router.for_query_document([histories, *_head(model, "history")], [rationales, *_head(model, "rationale")])
    return SentenceTransformer(modules=[router], device="cpu", similarity_fn_name="cosine")


def _is_shared(model: PulseThoughtSpaceModel) -> bool:
    """Whether both sides have one tower and tokenizers that differ in nothing."""
    history, rationale = (_tokenizer(model, side) for side in ("history", "rationale"))
    if not model.config.shared_towers or not (history.is_fast and rationale.is_fast):
        return False
    return bool(history.backend_tokenizer.to_str() == rationale.backend_tokenizer.to_str())


def _tower(model: PulseThoughtSpaceModel, side: str, towers: Path) -> Transformer:
    """The encoder of one side and its tokenizer, as a module."""
    from sentence_transformers.base.modules import Transformer

    encoder = model.tower(side)
    encoder.save_pretrained(towers / side)
    _tokenizer(model, side).save_pretrained(towers / side)
    without_pooler = "add_pooling_layer" in inspect.signature(type(encoder).__init__).parameters
    module = Transformer(
        str(towers / side),
        model_kwargs={"add_pooling_layer": False} if without_pooler else {},
        query_length=model.processor.max_history_tokens,
        document_length=model.processor.max_rationale_tokens,
        # Texts as they are, even where the tokenizer has a chat template.
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
    )
    if without_pooler:  # tell whoever loads it, else a pooler that nothing reads is made and warned about
        module.model_kwargs = {"add_pooling_layer": False}
        module.config_keys = [*module.config_keys, "model_kwargs"]
    return module


def _tokenizer(model: PulseThoughtSpaceModel, side: str) -> PreTrainedTokenizerBase:
    """A copy that cuts and pads as our processor does, and that needs no class of ours."""
    tokenizer = deepcopy(
        model.processor.history_tokenizer if side == "history" else model.processor.rationale_tokenizer
    )
    forget_use(tokenizer)
    tokenizer._set_processor_class(None)
    for name in ("auto_map", "processor_class"):
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "right"  # only what is in the latter is saved
    tokenizer.model_max_length = model.processor.max_rationale_tokens  # what plain encode takes
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _head(model: PulseThoughtSpaceModel, side: str) -> list[Module]:
    """From token states to unit vectors."""
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling
    from torch.nn import Identity

    width = model.tower(side).config.hidden_size
    modules = [Pooling(width, "mean"), Normalize()]
    if model.config.projection_dim:
        projection = model.history_projection if side == "history" else model.rationale_projection
        weight = projection.weight.detach().cpu().clone()
        dense = Dense(
            width, model.config.projection_dim, bias=False, activation_function=Identity(), init_weight=weight
        )
        modules.insert(1, dense)
    return modules


def _compare(model: PulseThoughtSpaceModel, exported: SentenceTransformer) -> None:
    import torch

    pairs = {
        "histories": (model.encode_histories(_PROBES), exported.encode_query(_PROBES, show_progress_bar=False)),
        "rationales": (model.encode_rationales(_PROBES), exported.encode_document(_PROBES, show_progress_bar=False)),
    }
    for kind, (ours, theirs) in pairs.items():
        difference = float((ours - torch.as_tensor(theirs)).abs().max())
        if not difference <= TOLERANCE:
            raise ValueError(
                f"sentence-transformers gives other vectors of {kind} (by up to {difference:.2g}, expected at most "
                f"{TOLERANCE}): {type(model.tower(kind.removesuffix('s'))).__name__} cannot be exported."
            )
