"""Texts to unit vectors by a frozen sentence encoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from time import monotonic
from typing import TYPE_CHECKING

from pulse_hf.models.embedded import is_here
from pulse_hf.models.loading import one_load_at_a_time

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

RETRY_S = 60.0  # a model of the Hub that could not be opened is not asked for in every request
_refused: dict[str, tuple[float, Exception]] = {}


def encode_texts(
    texts: Sequence[str], encoder: str, *, max_tokens: int = 64, batch_size: int = 64
) -> NDArray[np.float32]:
    """Vectors of texts from any encoder that sentence-transformers loads.

    Equal texts are encoded once; batches hold texts of like length (the library sorts them).

    Args:
        texts: What to encode; an empty text is legal.
        encoder: A model name as :func:`pulse_hf.models.embedded.resolve_model` takes it.
        max_tokens: Longer texts are cut; at most what the encoder takes.
        batch_size: Texts encoded at once.

    Returns:
        (n, dim) of unit length, in the order given.

    Raises:
        ValueError: A vector is not finite, or the Hub does not give the encoder; for :data:`RETRY_S` seconds after
            that it is not asked again.
        ConnectionError: Likewise; the encoder is not cached, and the Hub is out of reach.
    """
    import numpy as np

    model, limit = _opened_or_refused(encoder)
    model.max_seq_length = min(max_tokens, limit or max_tokens)
    distinct = list(dict.fromkeys(texts))
    vectors = model.encode(distinct, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False)
    if not np.isfinite(vectors).all():
        raise ValueError(
            f"{encoder} gave vectors that are not finite for {int((~np.isfinite(vectors).all(1)).sum())} texts"
        )
    row = {text: index for index, text in enumerate(distinct)}
    return np.ascontiguousarray(vectors[[row[text] for text in texts]], dtype=np.float32)


def count_cut(texts: Sequence[str], encoder: str, *, max_tokens: int = 64) -> int:
    """How many of the texts :func:`encode_texts` would read only the beginning of."""
    model, limit = _opened_or_refused(encoder)
    most = min(max_tokens, limit or max_tokens)
    return sum(len(ids) > most for ids in model.tokenizer(list(texts), verbose=False)["input_ids"])


def _opened_or_refused(encoder: str) -> tuple[SentenceTransformer, int | None]:
    if encoder in _refused:
        until, told = _refused[encoder]
        if monotonic() < until:
            raise told.with_traceback(None)
    try:
        return _opened(encoder)
    except Exception as error:
        if not is_here(encoder):
            _refused[encoder] = (monotonic() + RETRY_S, error)
        raise


@lru_cache(maxsize=1)  # while serving, every title outside the catalogue is encoded
@one_load_at_a_time
def _opened(encoder: str) -> tuple[SentenceTransformer, int | None]:
    """The encoder, and how many tokens it takes at most."""
    import torch
    from sentence_transformers import SentenceTransformer

    from pulse_hf.models.embedded import commit_of, resolve_model

    name, identity = resolve_model(encoder)
    # float32 whatever the checkpoint's dtype: half precision is slow on a CPU, and vectors would differ by machine.
    kwargs = {"dtype": torch.float32, "use_safetensors": True}  # a repo named by commit is not looked through before
    model = SentenceTransformer(name, model_kwargs=kwargs, revision=commit_of(identity))
    return model, model.max_seq_length
