"""What a learned baseline may learn from, and the run's own budgets, the same for every one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pulse_hf import artifacts, schema
from pulse_hf.training.sequential import SequentialSettings
from pulse_hf.training.thought_space import ThoughtSpaceSettings

if TYPE_CHECKING:
    from torch import Tensor

    from pulse_hf.training.scorer import RecommenderSettings
    from pulse_hf.training.sequential import Fits

__all__ = ["Material"]


@dataclass(frozen=True)
class Material:
    """Data and budgets of one run.

    Args:
        run: The run's folder; its finished stages may be read.
        work: Where the fitted models go, each in a folder of its system's name.
        sequences: All users; a fit sees ``sequence.training()`` and, to choose an epoch, validation targets.
        items: The catalogue in its order.
        space: Budget of text encoders: the Thought Space's own settings.
        sequential: Budget of sequential models: SASRec's own settings.
        num_titles: Titles of a history that a text model reads.
        seed: The run's seed.
    """

    run: Path
    work: Path
    sequences: Sequence[schema.Sequence]
    items: Sequence[schema.Item]
    space: ThoughtSpaceSettings
    sequential: SequentialSettings
    num_titles: int
    seed: int

    @cached_property
    def item_of(self) -> Mapping[str, schema.Item]:
        """The catalogue by item id."""
        return {item.item_id: item for item in self.items}

    @cached_property
    def text_vectors(self) -> Tensor:
        """(num_items, text_dim) frozen encoder's vectors of the item texts, as the stage ``sequential`` kept them."""
        return artifacts.read_tensors(self.run / "sequential" / "item_vectors.safetensors")["item_vectors"].float()

    @cached_property
    def recommender(self) -> RecommenderSettings:
        """Budget of systems that use the language model: the scorer's own settings."""
        from pulse_hf.training.scorer import RecommenderSettings

        return RecommenderSettings(**artifacts.settings_of(self.run / "recommender"))

    def fits(self, settings: SequentialSettings | None = None) -> Fits:
        """SASRec's own fitting, with the run's settings or other ones."""
        from pulse_hf.training.sequential import Fits

        ids = [item.item_id for item in self.items]
        return Fits(self.work, self.sequences, ids, settings or self.sequential, seed=self.seed)
