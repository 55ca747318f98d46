"""A-LLMRec (Kim et al., KDD 2024): collaborative knowledge as soft tokens of a frozen language model.

Stage 1 brings SASRec's item vectors and a sentence encoder's vectors of the item texts into one latent space by two
small encoders. Stage 2 maps user vectors and the items' latents into the language model's token embedding.

One departure: the sentence encoder stays frozen (the original tunes it), so that its vectors are computed once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_a_llmrec import PulseALLMRecConfig


@dataclass
class ALLMRecOutput(ModelOutput):
    """The losses of stage 1, each a scalar.

    Args:
        loss: ``recommendation + matching + item_weight * item + text_weight * text``.
        matching: Squared distance of an item's two latents.
        item: Squared error of the decoded item vectors.
        text: Squared error of the decoded text vectors.
        recommendation: Binary cross-entropy of the chosen and the sampled item.
    """

    loss: Tensor | None = None
    matching: Tensor | None = None
    item: Tensor | None = None
    text: Tensor | None = None
    recommendation: Tensor | None = None


def _encoder(width: int, latent_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, latent_dim), nn.Sigmoid())


def _projection(width: int, lm_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, lm_dim), nn.LayerNorm(lm_dim), nn.GELU(), nn.Linear(lm_dim, lm_dim))


class PulseALLMRecModel(PreTrainedModel):
    """The trained parts of A-LLMRec: stage 1's encoders and decoders, stage 2's two projections, the items' latents.

    Args:
        config: Sizes and weights.

    Example:
        >>> model = PulseALLMRecModel(PulseALLMRecConfig(num_items=3, item_dim=4, text_dim=6, latent_dim=5, lm_dim=8))
        >>> model.user_tokens(torch.zeros(2, 4)).shape, model.item_tokens(torch.tensor([1, 3])).shape
        (torch.Size([2, 8]), torch.Size([2, 8]))
    """

    config_class = PulseALLMRecConfig
    base_model_prefix = "a_llmrec"
    main_input_name = "user_vectors"
    joint: Tensor

    def __init__(self, config: PulseALLMRecConfig) -> None:
        super().__init__(config)
        self.item_encoder = _encoder(config.item_dim, config.latent_dim)
        self.item_decoder = nn.Linear(config.latent_dim, config.item_dim)
        self.text_encoder = _encoder(config.text_dim, config.latent_dim)
        self.text_decoder = nn.Linear(config.latent_dim, config.text_dim)
        self.user_projection = _projection(config.item_dim, config.lm_dim)
        self.item_projection = _projection(config.latent_dim, config.lm_dim)
        self.register_buffer("joint", torch.zeros(config.num_items + 1, config.latent_dim))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fill every parameter *and buffer*: loading builds the model on the meta device, without values."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.xavier_normal_(module.weight)
        if module is self:
            init.zeros_(self.joint)

    def forward(self, user_vectors: Tensor, item_vectors: Tensor, text_vectors: Tensor) -> ALLMRecOutput:
        """The losses of stage 1 (Kim et al. 2024, §4.1).

        A candidate's score is the dot product of the user vector and the item decoded from its latent. Squared errors
        are means over rows and dimensions, and sums over a row's two items.

        Args:
            user_vectors: (batch, item_dim), the user before the choice.
            item_vectors: (batch, 2, item_dim), SASRec's vectors of the chosen item and of a sampled other one.
            text_vectors: (batch, 2, text_dim), the vectors of their texts.
        """
        latent, said = self.item_encoder(item_vectors), self.text_encoder(text_vectors)
        decoded = self.item_decoder(latent)
        matching = 2 * F.mse_loss(latent, said)
        item = 2 * F.mse_loss(decoded, item_vectors)
        text = 2 * F.mse_loss(self.text_decoder(said), text_vectors)
        chosen, other = (user_vectors[:, None] * decoded).sum(-1).unbind(1)
        recommendation = -(F.logsigmoid(chosen) + F.logsigmoid(-other)).mean()
        loss = recommendation + matching + self.config.item_weight * item + self.config.text_weight * text
        return ALLMRecOutput(loss, matching, item, text, recommendation)

    @torch.no_grad()
    def set_joint(self, item_vectors: Tensor, text_vectors: Tensor, trained: Tensor) -> None:
        """Keep the joint collaborative-text embedding of every item.

        An item with training events gets the latent of its item vector; one without gets the latent of its text,
        since nobody's choice ever formed its item vector (Kim et al. 2024, §4.2).

        Args:
            item_vectors: (num_items, item_dim), row i belongs to item index i + 1.
            text_vectors: (num_items, text_dim).
            trained: (num_items,) True for items with training events.
        """
        latent, said = self.item_encoder(item_vectors), self.text_encoder(text_vectors)
        self.joint[1:] = torch.where(trained[:, None], latent, said)

    def user_tokens(self, user_vectors: Tensor) -> Tensor:
        """Soft tokens (batch, lm_dim) of user vectors (batch, item_dim)."""
        tokens: Tensor = self.user_projection(user_vectors)
        return tokens

    def item_tokens(self, item_indices: Tensor) -> Tensor:
        """Soft tokens (count, lm_dim) of item indices (count,)."""
        tokens: Tensor = self.item_projection(self.joint[item_indices])
        return tokens


class SoftTokenEmbedding(nn.Module):
    """A token embedding that also knows soft tokens, as ids beyond the vocabulary.

    Put in the place of a language model's own embedding, it makes every function of ids work with soft tokens. Ids
    ``first + i`` are item i, ids ``first + num_items + 1 + r`` the user in row r of ``user_vectors``.

    Args:
        tokens: The language model's own embedding, left as it is.
        bridge: Makes the soft tokens.
        user_vectors: (num_rows, item_dim).
        first: The first id that is no token of the language model.
    """

    user_vectors: Tensor

    def __init__(self, tokens: nn.Module, bridge: PulseALLMRecModel, user_vectors: Tensor, first: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.bridge = bridge
        self.register_buffer("user_vectors", user_vectors, persistent=False)
        self.first = first

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embeddings (batch, length, lm_dim) of ids (batch, length)."""
        vectors: Tensor = self.tokens(input_ids.clamp(max=self.first - 1))
        soft = input_ids - self.first
        num_items = self.bridge.config.num_items
        items, users = (soft >= 0) & (soft <= num_items), soft > num_items
        of_items = self.bridge.item_tokens(soft[items])
        of_users = self.bridge.user_tokens(self.user_vectors[soft[users] - num_items - 1])
        return vectors.index_put((items,), of_items.to(vectors.dtype)).index_put((users,), of_users.to(vectors.dtype))
