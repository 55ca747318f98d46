"""SASRec (Kang & McAuley, ICDM 2018) with a full-softmax loss and optional text features of items.

Departures from the original, each for a reason: layer norm stands before attention and feed-forward
on the residual branch only (pre-norm trains without warm-up); the feed-forward is four times as wide with GELU;
the loss is a softmax over the whole catalogue (Klenitskiy & Vasilev, RecSys 2023: the sampled loss is
what makes SASRec look weak); and positions are counted from the most recent event, so that padding on the
left changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import WEIGHTS_INDEX_NAME, WEIGHTS_NAME, ModelOutput, has_file

from .configuration_sasrec import PulseSASRecConfig
from .modeling_sasrec_losses import full_softmax_loss, sampled_loss

LOSSES = ("ce", "bce", "gbce")


@dataclass
class PulseSASRecOutput(ModelOutput):
    """What :meth:`PulseSASRecModel.forward` returns.

    Args:
        loss: Mean next-item loss over the real targets; ``None`` without labels.
        last_hidden_state: One vector per event (batch, length, dim); zero at padding.
    """

    loss: Tensor | None = None
    last_hidden_state: Tensor | None = None


class _Block(nn.Module):
    """One pre-norm block of causal self-attention and feed-forward."""

    def __init__(self, config: PulseSASRecConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.attention_norm = nn.LayerNorm(config.dim)
        self.query_key_value = nn.Linear(config.dim, 3 * config.dim)
        self.attention_output = nn.Linear(config.dim, config.dim)
        self.forward_norm = nn.LayerNorm(config.dim)
        self.widen = nn.Linear(config.dim, 4 * config.dim)
        self.narrow = nn.Linear(4 * config.dim, config.dim)

    def forward(self, hidden: Tensor, allowed: Tensor) -> Tensor:
        """Map (batch, length, dim) to the same shape; ``allowed`` (batch, 1, length, length) is True where seen."""
        batch, length, dim = hidden.shape
        parts = self.query_key_value(self.attention_norm(hidden)).view(batch, length, 3, self.num_heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (B, heads, T, D / heads)
        drop = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=drop)
        mixed = self.attention_output(mixed.transpose(1, 2).reshape(batch, length, dim))
        hidden = hidden + F.dropout(mixed, drop)
        widened = F.dropout(F.gelu(self.widen(self.forward_norm(hidden))), drop)
        return hidden + F.dropout(self.narrow(widened), drop)


class PulseSASRecPreTrainedModel(PreTrainedModel):
    """Loading and initialisation shared by SASRec models."""

    config_class = PulseSASRecConfig
    base_model_prefix = "sasrec"
    main_input_name = "item_indices"
    _no_split_modules = ["_Block"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fill every parameter *and buffer*: loading builds the model on the meta device, without values."""
        super()._init_weights(module)
        if isinstance(module, PulseSASRecModel) and module.config.text_dim:
            init.zeros_(module.text_features)


class PulseSASRecModel(PulseSASRecPreTrainedModel):
    """A causal transformer over a user's events; its vectors serve next-item scores and similar users.

    Item indices run from 1 to ``config.num_items``; 0 is padding, on the left. The score of an item is
    the dot product of the user vector and the item vector, which is also the item's input embedding. With
    ``config.text_dim`` the item vector is the id embedding plus a projection of a frozen text vector, so an
    item never seen in training still gets a meaningful one.

    Args:
        config: Size and objective.

    Raises:
        ValueError: The configuration contradicts itself.

    Example:
        >>> model = PulseSASRecModel(PulseSASRecConfig(num_items=5, dim=8)).eval()
        >>> model.user_vectors([[1, 2, 3], [4]]).shape, model.scores([[1, 2]]).shape
        (torch.Size([2, 8]), torch.Size([1, 6]))
    """

    def __init__(self, config: PulseSASRecConfig) -> None:
        super().__init__(config)
        _check(config)
        self.item_embedding = nn.Embedding(config.num_items + 1, config.dim, padding_idx=0)
        self.position_embedding = nn.Embedding(config.max_events, config.dim)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.dim)
        if config.text_dim:
            self.register_buffer("text_features", torch.zeros(config.num_items + 1, config.text_dim))
            self.text_projection = nn.Linear(config.text_dim, config.dim, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, use_safetensors: bool | None = True, **kwargs: Any
    ) -> Any:
        """Load from a folder or the Hub; takes what ``PreTrainedModel.from_pretrained`` takes.

        Raises:
            OSError: There is no such model, or its weights are no safetensors.
            ValueError: ``use_safetensors=False`` is asked for.
        """
        if use_safetensors is False:
            raise ValueError("use_safetensors=False asks for pickled weights, which can run code; leave it out.")
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, use_safetensors=True, **kwargs)
        except OSError:
            _refuse_pickle(pretrained_model_name_or_path, kwargs)
            raise

    def get_input_embeddings(self) -> nn.Module:
        """The table of id embeddings."""
        return self.item_embedding

    def set_text_features(self, vectors: Tensor) -> None:
        """Put in the frozen text vectors of the catalogue.

        Args:
            vectors: (num_items, text_dim), row i belongs to item index i + 1.

        Raises:
            ValueError: The shape is not the configuration's.
        """
        expected = (self.config.num_items, self.config.text_dim)
        if tuple(vectors.shape) != expected:
            raise ValueError(f"text vectors of shape {tuple(vectors.shape)}; this model expects {expected}")
        self.text_features[1:] = vectors.to(self.text_features)

    def item_vectors(self) -> Tensor:
        """Vectors of the whole catalogue (num_items + 1, dim); row 0, the padding, is zero."""
        if not self.config.text_dim:
            return self.item_embedding.weight
        # Text features of the padding row are zero and the projection has no bias: row 0 stays zero.
        return self.item_embedding.weight + self.text_projection(self.text_features)

    def encode(self, item_indices: Tensor, table: Tensor | None = None) -> Tensor:
        """One vector per event, from this event and the ones before it.

        Args:
            item_indices: (batch, length) with padding 0 on the left; length at most ``max_events``.
            table: (rows, dim) vectors that the indices name, row 0 for the padding; :meth:`item_vectors` if ``None``.

        Returns:
            (batch, length, dim), zero at padding.

        Raises:
            ValueError: A row is longer than ``max_events``, or the padding is not on the left.
        """
        table = self.item_vectors() if table is None else table
        length = item_indices.shape[1]
        if length > self.config.max_events:
            raise ValueError(
                f"histories of {length} events; this model takes the last {self.config.max_events}: cut them first"
            )
        real = item_indices != 0  # (B, T)
        if bool((real[:, :-1] & ~real[:, 1:]).any()):
            raise ValueError(
                "padding (0) after an event: histories are padded on the left, so the last column is the newest event"
            )
        age = torch.arange(length - 1, -1, -1, device=item_indices.device)
        hidden = F.embedding(item_indices, table) * self.config.dim**0.5 + self.position_embedding(age)
        hidden = F.dropout(hidden, self.config.dropout, self.training)
        causal = torch.ones(length, length, dtype=torch.bool, device=item_indices.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=item_indices.device)
        # Padding sees itself: a row that sees nothing would be NaN.
        allowed = causal & (real[:, None, None, :] | itself)  # (B, 1, T, T)
        for block in self.blocks:
            hidden = block(hidden, allowed)
        return self.final_norm(hidden) * real[..., None]

    def forward(
        self,
        item_indices: Tensor,
        labels: Tensor | None = None,
        negatives: Tensor | None = None,
        excluded: Tensor | None = None,
    ) -> PulseSASRecOutput:
        """Encode histories and, with labels, the loss of predicting each next item.

        Args:
            item_indices: (batch, length) with padding 0 on the left.
            labels: (batch, length) the item that follows each event; 0 where there is none.
            negatives: (num_targets, num_negatives) sampled item indices for ``"bce"`` and ``"gbce"``,
                one row per real label in reading order.
            excluded: (num_items,) True for items that ``"ce"`` leaves out of the softmax.

        Returns:
            The vectors and, with labels, the mean loss.

        Raises:
            ValueError: A sampled loss is configured and ``negatives`` are missing, or a target is ``excluded``.
        """
        table = self.item_vectors()
        hidden = self.encode(item_indices, table)
        if labels is None:
            return PulseSASRecOutput(last_hidden_state=hidden)
        wanted = labels != 0
        users, targets = hidden[wanted], labels[wanted]
        if self.config.loss == "ce":
            loss = self._softmax(users, targets, table, excluded)
            return PulseSASRecOutput(loss=loss, last_hidden_state=hidden)
        loss = self._sampled(users, targets, table, negatives)
        return PulseSASRecOutput(loss=loss, last_hidden_state=hidden)

    def _softmax(self, users: Tensor, targets: Tensor, table: Tensor, excluded: Tensor | None) -> Tensor:
        if excluded is None:
            return full_softmax_loss(users, table[1:], targets - 1)
        if bool(excluded[targets - 1].any()):
            raise ValueError("an item that the softmax leaves out is a target; leave out only what is never one")
        places = (~excluded).cumsum(0) - 1  # of each item among those that are left
        return full_softmax_loss(users, table[1:][~excluded], places[targets - 1])

    def _sampled(self, users: Tensor, targets: Tensor, table: Tensor, negatives: Tensor | None) -> Tensor:
        if negatives is None:
            raise ValueError(
                f"loss {self.config.loss!r} needs sampled negatives of shape (num_targets, num_negatives)"
            )
        positive = (users * F.embedding(targets, table)).sum(-1)
        negative = (users[:, None] * F.embedding(negatives, table)).sum(-1)
        t = self.config.gbce_t if self.config.loss == "gbce" else 0.0
        return sampled_loss(positive, negative, num_items=self.config.num_items, t=t)

    @torch.no_grad()
    def user_vectors(self, histories: Sequence[Sequence[int]], batch_size: int = 512) -> Tensor:
        """The vector of each user after the last event of the history, for inference.

        Args:
            histories: Item indices, oldest first, at least one each; cut to the last ``max_events``.
            batch_size: Histories encoded at once; does not change the result.

        Returns:
            (batch, dim) on the model's device, in the order given.

        Raises:
            ValueError: A history is empty or names an item outside the catalogue.
        """
        vectors = torch.empty(len(histories), self.config.dim, device=self.device, dtype=self.dtype)
        trained, table = self.training, self.item_vectors()
        self.eval()
        for places, item_indices in self._batches(histories, batch_size):
            vectors[places] = self.encode(item_indices, table)[:, -1]
        self.train(trained)
        return vectors

    def _batches(self, histories: Sequence[Sequence[int]], batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
        # Batches of like length waste no work on padding.
        order = sorted(range(len(histories)), key=lambda place: len(histories[place]))
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            item_indices = left_padded([histories[place] for place in places], self.config.max_events)
            if item_indices[:, -1].min() < 1 or item_indices.min() < 0 or item_indices.max() > self.config.num_items:
                raise ValueError(
                    f"a history is empty or holds an item index outside [1, {self.config.num_items}]; "
                    "map items through the catalogue this model was trained on"
                )
            yield places, item_indices.to(self.device)

    @torch.no_grad()
    def scores(self, histories: Sequence[Sequence[int]]) -> Tensor:
        """Next-item scores of the whole catalogue (batch, num_items + 1); column 0, the padding, is -inf."""
        scores = self.user_vectors(histories) @ self.item_vectors().T
        scores[:, 0] = float("-inf")
        return scores


def _refuse_pickle(name: Any, where: dict[str, Any]) -> None:
    """Say so where a pickle is why nothing was found; called when loading safetensors has failed."""
    asked = {key: where[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in where}
    folder = f"{where['subfolder']}/" if where.get("subfolder") else ""
    if any(has_file(str(name), folder + file, **asked) for file in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        raise OSError(
            f"{name} holds its weights as a pickle only ({WEIGHTS_NAME}), which can run code when it is read; "
            "safetensors are expected. Ask its owner for model.safetensors, or take another revision."
        )


def _check(config: PulseSASRecConfig) -> None:
    if config.num_items < 1:
        raise ValueError(f"num_items is {config.num_items}; a catalogue needs at least one item")
    if config.dim % config.num_heads:
        raise ValueError(f"dim {config.dim} is no multiple of num_heads {config.num_heads}")
    if config.loss not in LOSSES:
        raise ValueError(f"loss {config.loss!r} is not one of {', '.join(LOSSES)}")


def left_padded(histories: Sequence[Sequence[int]], max_events: int) -> Tensor:
    """Histories as one (batch, length) tensor, cut to the last ``max_events`` and padded with 0 on the left.

    >>> left_padded([[7], [1, 2, 3]], max_events=2).tolist()
    [[0, 7], [2, 3]]
    """
    length = max(1, min(max_events, max(len(history) for history in histories)))
    return torch.tensor([[0] * (length - len(history)) + list(history[-length:]) for history in histories])


PulseSASRecModel.register_for_auto_class("AutoModel")
