"""The Thought Space: a history tower and a rationale tower that meet in one space (paper §4.1, Figure 1).

Departures from the paper, each a setting: one shared tower is the default (the paper has two DistilBERTs),
and a projection is optional. The contrastive temperature belongs to training, not to the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, AutoProcessor, PreTrainedModel
from transformers import initialization as init
from transformers.utils import WEIGHTS_INDEX_NAME, WEIGHTS_NAME, ModelOutput, has_file

from .configuration_thought_space import PulseThoughtSpaceConfig

__all__ = ["PulseThoughtSpaceModel", "ThoughtSpaceOutput"]


@dataclass
class ThoughtSpaceOutput(ModelOutput):
    """What ``forward`` gives.

    Args:
        history_embeddings: (batch, dim), unit length.
        rationale_embeddings: (batch, dim), unit length.
        agreement: (batch,) cosine of each history with its own rationale, in [-1, 1].
    """

    history_embeddings: Tensor | None = None
    rationale_embeddings: Tensor | None = None
    agreement: Tensor | None = None


class PulseThoughtSpaceModel(PreTrainedModel):
    """Maps histories and rationales to unit vectors whose cosine says how well a reason fits a person.

    Reference: PULSE, §4.1.

    Example:
        >>> from transformers import BertConfig
        >>> tower = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> config = PulseThoughtSpaceConfig(history_config=tower, rationale_config=tower)
        >>> model = PulseThoughtSpaceModel(config).eval()
        >>> ids, mask = torch.tensor([[1, 2, 3]]), torch.ones(1, 3)
        >>> model.embed("history", ids, mask).norm(dim=-1).round(decimals=4).tolist()
        [1.0]
    """

    config_class = PulseThoughtSpaceConfig
    base_model_prefix = "thought_space"
    _supports_sdpa = True

    def __init__(self, config: PulseThoughtSpaceConfig) -> None:
        super().__init__(config)
        self.history_tower = _without_pooler(AutoModel.from_config(config.history_config))
        if not config.shared_towers:
            self.rationale_tower = _without_pooler(AutoModel.from_config(config.rationale_config))
        widths = {side: self.tower(side).config.hidden_size for side in ("history", "rationale")}
        if config.projection_dim:
            # Two projections even over a shared tower: the cheap way to let the two kinds of text differ.
            self.history_projection = nn.Linear(widths["history"], config.projection_dim, bias=False)
            self.rationale_projection = nn.Linear(widths["rationale"], config.projection_dim, bias=False)
        elif widths["history"] != widths["rationale"]:
            raise ValueError(f"The towers have widths {widths}: set projection_dim so that they meet in one space.")
        self.processor: Any = None
        self.encodes_in_bf16 = False  # texts only: about twice as fast where it is native, cosines good to 1e-2
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if self.config.projection_dim and module in (self.history_projection, self.rationale_projection):
            init.eye_(module.weight)  # before training the pretrained space is kept

    @classmethod
    def from_encoders(
        cls,
        history_encoder: str,
        rationale_encoder: str | None = None,
        *,
        shared_towers: bool = True,
        projection_dim: int = 0,
        **loading: Any,
    ) -> PulseThoughtSpaceModel:
        """Start from pretrained encoders; attach a processor before encoding texts.

        Args:
            history_encoder: Folder or Hub id.
            rationale_encoder: The same for rationales; ``None`` takes the history encoder's weights.
            shared_towers: One tower for both kinds of text; ``rationale_encoder`` must then be ``None``.
            projection_dim: Width of the space, 0 for the encoders' own.
            loading: Passed to ``AutoModel.from_pretrained``, such as ``revision``.

        Raises:
            ValueError: Shared towers and a second encoder.
        """
        if shared_towers and rationale_encoder is not None:
            raise ValueError(
                f"shared_towers=True, but a rationale encoder {rationale_encoder!r} is given; drop one of the two."
            )
        # float32 whatever the checkpoint's dtype: training in bf16 weights loses small updates.
        loading = {"dtype": torch.float32, "use_safetensors": True, **loading}
        histories = _without_pooler(AutoModel.from_pretrained(history_encoder, **loading))
        rationales = (
            _without_pooler(AutoModel.from_pretrained(rationale_encoder, **loading))
            if rationale_encoder
            else histories
        )
        config = cls.config_class(
            history_config=histories.config.to_dict(),
            rationale_config=rationales.config.to_dict(),
            shared_towers=shared_towers,
            projection_dim=projection_dim,
        )
        model = cls(config)
        model.history_tower.load_state_dict(histories.state_dict())
        if not shared_towers:
            model.rationale_tower.load_state_dict(rationales.state_dict())
        return model.eval()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, use_safetensors: bool | None = True, **kwargs: Any
    ) -> Any:
        """Load weights and processor from a folder or the Hub; takes what ``PreTrainedModel.from_pretrained`` takes.

        Raises:
            OSError: There is no such model, or its weights are no safetensors.
            ValueError: ``use_safetensors=False`` is asked for.
        """
        if use_safetensors is False:
            raise ValueError("use_safetensors=False asks for pickled weights, which can run code; leave it out.")
        names = ("subfolder", "revision", "token", "cache_dir", "local_files_only", "force_download", "proxies")
        where = {name: kwargs[name] for name in names if name in kwargs}
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, use_safetensors=True, **kwargs)
        except OSError:
            _refuse_pickle(pretrained_model_name_or_path, where)
            raise
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # Code that came from the repository was trusted to get here; its processor is the same repository's.
        trusted = cls.__module__.startswith("transformers_modules")
        model.processor = AutoProcessor.from_pretrained(
            pretrained_model_name_or_path, trust_remote_code=trusted, **where
        )
        return loaded

    def save_pretrained(
        self, save_directory: Any, is_main_process: bool = True, *, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Save weights, configuration, processor, and the code that loads them where this package is not installed.

        Args:
            save_directory: Folder, made if needed.
            is_main_process: Of several processes only the main one writes.
            push_to_hub: Send the folder's content to the Hub as well, see :meth:`push_to_hub`.
            kwargs: Passed to ``PreTrainedModel.save_pretrained``; with ``push_to_hub`` also ``repo_id`` (the
                folder's name if left out), ``commit_message``, ``private``, ``token``, ``revision``, ``create_pr``.

        Raises:
            ValueError: No processor is attached.
        """
        if self.processor is None:
            raise ValueError(
                "The model has no processor: set model.processor before saving, or nobody can encode texts with it."
            )
        names = ("repo_id", "commit_message", "private", "token", "revision", "create_pr")
        upload = {name: kwargs.pop(name) for name in names if name in kwargs}
        for side in ("history_config", "rationale_config"):
            if getattr(self.config, side) is not None:
                getattr(self.config, side).name_or_path = ""  # a path of the machine that trained it
        if is_main_process:
            self.processor.save_pretrained(save_directory)
        super().save_pretrained(save_directory, is_main_process, **kwargs)
        if push_to_hub and is_main_process:
            self.push_to_hub(upload.pop("repo_id", str(save_directory).rstrip("/").rpartition("/")[2]), **upload)

    def get_input_embeddings(self) -> nn.Module:
        """The history tower's word embeddings."""
        return self.history_tower.get_input_embeddings()

    def tower(self, side: str) -> PreTrainedModel:
        """The encoder of ``"history"`` or ``"rationale"``."""
        return self.history_tower if side == "history" or self.config.shared_towers else self.rationale_tower

    def pool(self, side: str, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        """Mean over real tokens, projection, unit length.

        Args:
            side: ``"history"`` or ``"rationale"``.
            hidden_states: (batch, length, width) last states of the tower.
            attention_mask: (batch, length), 1 for real tokens.

        Returns:
            (batch, dim), unit length.
        """
        mask = attention_mask.unsqueeze(-1).to(hidden_states.dtype)
        mean = (hidden_states * mask).sum(1) / mask.sum(1).clamp(min=1)
        if self.config.projection_dim:
            mean = (self.history_projection if side == "history" else self.rationale_projection)(mean)
        return functional.normalize(mean.float(), dim=-1)

    def embed(self, side: str, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids (batch, length) of one side to unit vectors (batch, dim)."""
        states = self.tower(side)(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.pool(side, states, attention_mask)

    def forward(
        self,
        history_input_ids: Tensor,
        history_attention_mask: Tensor,
        rationale_input_ids: Tensor,
        rationale_attention_mask: Tensor,
    ) -> ThoughtSpaceOutput:
        """Embed histories and rationales row by row.

        Args:
            history_input_ids: (batch, history length).
            history_attention_mask: (batch, history length), 1 for real tokens.
            rationale_input_ids: (batch, rationale length).
            rationale_attention_mask: (batch, rationale length), 1 for real tokens.
        """
        histories = self.embed("history", history_input_ids, history_attention_mask)
        rationales = self.embed("rationale", rationale_input_ids, rationale_attention_mask)
        return ThoughtSpaceOutput(histories, rationales, (histories * rationales).sum(-1).clamp(-1, 1))

    def encode_histories(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Histories to unit vectors (paper §4.1: E_h).

        Args:
            texts: n histories, each one line as training told them; longer ones are cut at the end.
            batch_size: Texts encoded at once, those of like length together.

        Returns:
            (n, dim), float32 on the CPU, in the order given.

        Raises:
            ValueError: The model has no processor, ``texts`` is not a list of strings, or ``batch_size`` is below 1.
        """
        return self._encode("history", texts, batch_size)

    def encode_rationales(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Rationales to unit vectors (paper §4.1: E_r); arguments, shapes and errors as :meth:`encode_histories`."""
        return self._encode("rationale", texts, batch_size)

    def agreement(
        self, history_texts: str | Sequence[str], rationale_texts: Sequence[str], batch_size: int = 64
    ) -> Tensor:
        """How well rationales fit one history, or each rationale the history beside it (s of Eq. 2).

        Args:
            history_texts: One history for all rationales, or one for each.
            rationale_texts: n rationales.
            batch_size: Texts encoded at once.

        Returns:
            (n,) cosines in [-1, 1].

        Raises:
            ValueError: Rationales are no list, or the two lists differ in length.
        """
        if isinstance(rationale_texts, str):
            raise ValueError(f"Found the text {rationale_texts[:80]!r}, expected a list of rationales.")
        if isinstance(history_texts, str):
            history_texts = [history_texts]
            rationales = self.encode_rationales(rationale_texts, batch_size)
            return (rationales @ self.encode_histories(history_texts, batch_size)[0]).clamp(-1, 1)
        if len(history_texts) != len(rationale_texts):
            raise ValueError(
                f"Found {len(history_texts)} histories and {len(rationale_texts)} rationales, expected pairs."
            )
        histories = self.encode_histories(history_texts, batch_size)
        rationales = self.encode_rationales(rationale_texts, batch_size)
        return (histories * rationales).sum(-1).clamp(-1, 1)

    @torch.inference_mode()
    def _encode(self, side: str, texts: Sequence[str], batch_size: int) -> Tensor:
        if self.processor is None:
            raise ValueError("The model has no processor: load it with from_pretrained, or set model.processor.")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1.")
        token_ids = self.processor.token_ids(side, texts)
        dim = self.config.projection_dim or self.tower(side).config.hidden_size
        vectors = torch.zeros(len(token_ids), dim)
        # Rows of like length share a batch: least padding.
        order = sorted(range(len(token_ids)), key=lambda row: len(token_ids[row]))
        was_training = self.training
        self.eval()
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = self.processor.pad(side, [token_ids[row] for row in rows]).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.encodes_in_bf16):
                vectors[rows] = self.embed(side, batch["input_ids"], batch["attention_mask"]).cpu()
        self.train(was_training)
        return vectors


def _without_pooler(tower: PreTrainedModel) -> PreTrainedModel:
    # BERT-like towers carry a [CLS] head that mean pooling never reads: it would be saved and never trained.
    if getattr(tower, "pooler", None) is not None:
        tower.pooler = None
    return tower


def _refuse_pickle(name: Any, where: dict[str, Any]) -> None:
    """Say so where a pickle is why nothing was found; called when loading safetensors has failed."""
    asked = {key: where[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in where}
    folder = f"{where['subfolder']}/" if where.get("subfolder") else ""
    if any(has_file(str(name), folder + file, **asked) for file in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        raise OSError(
            f"{name} holds its weights as a pickle only ({WEIGHTS_NAME}), which can run code when it is read; "
            "safetensors are expected. Ask its owner for model.safetensors, or take another revision."
        )


AutoModel.register(PulseThoughtSpaceConfig, PulseThoughtSpaceModel, exist_ok=True)
PulseThoughtSpaceModel.register_for_auto_class("AutoModel")
