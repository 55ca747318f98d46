"""Cards of a run's models: what each repo says of itself, from the run's report and manifests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from pulse_hf.artifacts import ArtifactError, read_json, read_manifest, settings_of
from pulse_hf.data.sequences import load_items
from pulse_hf.data.world.stage import is_synthetic
from pulse_hf.evaluation.comparisons import against_the_strongest
from pulse_hf.hub import cards
from pulse_hf.hub.privacy import without_folders
from pulse_hf.hub.repos import is_repo_id
from pulse_hf.reasoning.behaviour import behaviour_text
from pulse_hf.schema import Item, Sequence

__all__ = ["ModelCards", "license_of"]

_TOLD = ("max_events", "review_words")


def license_of(run: Path) -> str | None:
    """The embedded world is ours to license; of other data nothing is claimed."""
    return "apache-2.0" if is_synthetic(run) else None


@dataclass(frozen=True)
class ModelCards:
    """Renders the cards of one run's models.

    Args:
        run: The run's folder.
        repo_id: Where the model is published.
        license_id: The Hub's name of a licence, for example ``"apache-2.0"``.
        dataset: Repo of the published data.
        before: The repo's card as it is, ``""`` if there is none: what its owner set there is kept.
    """

    run: Path
    repo_id: str
    license_id: str | None = None
    dataset: str | None = None
    before: str = ""

    @cached_property
    def report(self) -> dict[str, Any]:
        """The run's report.

        Raises:
            ArtifactError: The run has no report.
        """
        if not (self.run / "report.json").is_file():
            raise ArtifactError(f"{self.run} has no report.json; finish it with: pulse evaluate --run {self.run}")
        return dict(read_json(self.run / "report.json"))

    @cached_property
    def _items(self) -> list[Item]:
        return load_items(self.run)

    @property
    def _license(self) -> str | None:
        old = cards.metadata_of(self.before)
        # What was said of the embedded shop alone says nothing of real data.
        of_shop = "synthetic-data" in (old.get("tags") or ()) and not is_synthetic(self.run)
        return self.license_id or (None if of_shop else old.get("license")) or license_of(self.run)

    @property
    def _data_name(self) -> str:
        return "embedded synthetic shop" if is_synthetic(self.run) else self.dataset or self.run.resolve().name

    def _rendered(
        self,
        template: str,
        *,
        library: str,
        pipeline: str | None,
        tags: Iterable[str],
        base_model: str | None = None,
        system: str | None = None,
        **fields: Any,
    ) -> str:
        """A card with what all cards have; ``system`` is the report's row whose figures go into the metadata."""
        name, synthetic = self.repo_id.split("/")[-1], is_synthetic(self.run)
        metadata = cards.model_metadata(
            library=library,
            pipeline=pipeline,
            tags=tags,
            license_id=self._license,
            # A model that lay in a folder has no page to link to.
            base_model=base_model if base_model and is_repo_id(base_model) else None,
            datasets=[self.dataset] if self.dataset else (),
            results=cards.eval_results(self.report, system, self._data_name, self.dataset) if system else None,
            name=name,
            synthetic=synthetic,
            language=cards.metadata_of(self.before).get("language") or "en",
        )
        shown = {"name": cards.plain(name), "repo_id": self.repo_id, "synthetic": synthetic, "license": self._license}
        return cards.with_kept_metadata(cards.render(template, metadata=metadata, **shown, **fields), self.before)

    def recommender(
        self,
        record: Mapping[str, Any],
        *,
        pool: int,
        base_included: bool,
        base_revision: str | None,
        merged: bool,
        plain_adapter: bool,
    ) -> str:
        """The card of the whole recommender.

        Args:
            record: What ``pulse.json`` holds.
            pool: People whose item lists are in it.
            base_included: Whether the base model is in it.
            base_revision: The base model's commit; ``None`` if it does not come from the Hub.
            merged: Whether the adapter is merged into the base model.
            plain_adapter: Whether the adapter loads into the base model alone.
        """
        return self._rendered(
            "recommender",
            library="pulse-hf",
            pipeline="text-ranking",
            tags=["explainable", "rationales", *(() if merged else ("lora", "peft"))],
            base_model=record["base_model"],
            system="pulse",
            history=json.dumps(self._named_items(), ensure_ascii=False),
            protocol=self.report["protocol"],
            systems=cards.systems_table(self.report),
            comparisons=cards.differences(against_the_strongest(self.report)),
            worth=cards.differences(cards.worth_of_a_reason(self.report)),
            audit=self.report["audit"],
            shared_towers=self._space["shared_towers"],
            adapter=not merged,
            plain_adapter=plain_adapter,
            base=self.repo_id if base_included else record["base_model"],
            base_subfolder="base" if base_included else "",
            base_revision=base_revision,
            server_model=record["thoughts"]["model"] if record["thoughts"]["engine"] == "server" else "",
            base_model_name=record["base_model"],
            base_included=base_included,
            items=len(self._items),
            pool=pool,
        )

    def _named_items(self) -> list[str]:
        """What a snippet asks with: two items' titles, or ids where a card cannot show the title as it is."""
        ids = {item.item_id for item in self._items}

        def shown(name: str) -> bool:
            return cards.plain(name) == name

        names = (one.title if shown(one.title) and one.title not in ids else one.item_id for one in self._items)
        return list(islice(filter(shown, names), 2))

    def eval_results(self) -> str:
        """The recommender's figures as the text of a ``.eval_results`` file; the data must be published."""
        return cards.eval_results_file(self.report, "pulse", str(self.dataset))

    def thought_space(self, *, as_sentence_transformer: bool = False) -> str:
        """The card of the Thought Space, or of its export."""
        fit = read_json(self.run / "thought_space" / "metrics.json")["models"]["model"]
        settings = self._space
        encoder, told = without_folders(settings["encoder"]), {key: settings[key] for key in _TOLD}
        return self._rendered(
            "sentence_transformer" if as_sentence_transformer else "thought_space",
            library="sentence-transformers" if as_sentence_transformer else "transformers",
            pipeline="sentence-similarity",
            tags=["rationales", "contrastive-learning"],
            base_model=encoder,
            history=self._told_history(**told),
            **told,
            validation=cards.matching(fit["validation"]),
            pairs=fit["pairs"]["fitted"],
            encoder=encoder,
            shared_towers=settings["shared_towers"],
        )

    @cached_property
    def _space(self) -> dict[str, Any]:
        """The settings that the Thought Space was fitted with."""
        return settings_of(self.run / "thought_space")

    def _told_history(self, max_events: int, review_words: int) -> str:
        """A history as the Thought Space was trained to read it: items of the catalogue, chosen by nobody."""
        items = {one.item_id: replace(one, title=cards.plain(one.title)) for one in self._items[:2]}
        reviews = ("", "so quiet, and made to last")[-len(items) :]
        history = Sequence("", tuple(items), (), (None,) * len(items), reviews)
        return behaviour_text(history, items, target=None, max_events=max_events, review_words=review_words)

    def sequential(self) -> str:
        """The card of SASRec; with its figures if the run has a report."""
        fit = read_manifest(self.run / "sequential")["counts"]["fits"]["sasrec"]
        known = (self.run / "report.json").is_file()
        return self._rendered(
            "sequential",
            library="transformers",
            pipeline=None,
            tags=["sequential-recommendation", "sasrec"],
            system="sasrec" if known else None,
            targets=fit["targets"],
            users=fit["users"],
            items=len(self._items),
            hr=cards.span(self.report["systems"]["sasrec"]["hr@1"]) if known else None,
            negatives=self.report["protocol"]["negatives"] if known else None,
        )
