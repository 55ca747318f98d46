"""From a finished run to repos of the Hub: which files of an artefact are published, and under which card."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile, copytree, ignore_patterns
from tempfile import TemporaryDirectory
from typing import Any

from pulse_hf.artifacts import ArtifactError, read_json, read_manifest, verify
from pulse_hf.data.sequences import load_items
from pulse_hf.hub import cards
from pulse_hf.hub.files import EVAL_RESULTS, seal_folder
from pulse_hf.hub.rationale_datasets import WORDS, export_dataset
from pulse_hf.hub.shipped import PACKAGE, shipped
from pulse_hf.hub.transfer import Pushed, RepoType, card_of, push_folder

MODELS = ("recommender", "thought-space", "sequential", "sentence-transformer")
APPS = ("metric", "space")
PUBLISHED = (*MODELS, *WORDS, *APPS)


@dataclass(frozen=True)
class Publication:
    """How something is published.

    Args:
        repo_id: ``owner/name``.
        private: Whether a new repo is private.
        token: Access token.
        revision: Branch.
        license: The Hub's name of a licence, for example ``"apache-2.0"``.
        config: Name of a dataset's configuration; the run's folder name by default.
        dataset: Repo of the published data, named in model cards.
        include_reviews: Keep reviews in datasets.
        merge: Merge the recommender's adapter.
        dry_run: Only say what would be sent.
    """

    repo_id: str
    private: bool | None = None
    token: str | None = None
    revision: str | None = None
    license: str | None = None
    config: str | None = None
    dataset: str | None = None
    include_reviews: bool = False
    merge: bool = False
    dry_run: bool = False

    @property
    def name(self) -> str:
        """The repo's own name."""
        return self.repo_id.split("/")[-1]


def publish(word: str, run: Path, how: Publication) -> Pushed:
    """Publish one artefact of a run.

    Args:
        word: One of :data:`PUBLISHED`.
        run: The run's folder; the metric and the Space need none.
        how: Where to and how.

    Raises:
        ValueError: There is nothing of that name to publish.
        ArtifactError: The artefact is missing, damaged, or may not leave this machine.
        ConnectionError: The Hub could not be reached or refused.
    """
    makers: dict[str, Callable[[Path, Path, Publication], None]] = {
        "recommender": _recommender,
        "thought-space": _thought_space,
        "sequential": _sequential,
        "sentence-transformer": _sentence_transformer,
        "metric": _metric,
        "space": _space,
    }
    if word not in PUBLISHED:
        raise ValueError(f"{word!r} cannot be published; expected one of {', '.join(PUBLISHED)}")
    with TemporaryDirectory() as name:
        folder = Path(name) / "repo"
        folder.mkdir()
        if word in WORDS:
            return _push_dataset(word, run, folder, how)
        makers[word](run, folder, how)
        kind: RepoType = "space" if word in APPS else "model"
        return push_folder(
            folder,
            how.repo_id,
            repo_type=kind,
            private=how.private,
            token=how.token,
            revision=how.revision,
            message=f"Push {word}",
            code=True,
            dry_run=how.dry_run,
        )


def _push_dataset(word: str, run: Path, folder: Path, how: Publication) -> Pushed:
    from pulse_hf.hub.dataset_card import dataset_card

    verify(run / word)
    config = how.config or run.resolve().name
    made = export_dataset(run, word, folder, config=config, include_reviews=how.include_reviews)
    before = "" if how.dry_run else card_of(how.repo_id, "dataset", revision=how.revision, token=how.token)
    card = dataset_card(
        made, how.repo_id, before=before, license_id=how.license or _license(run), synthetic=_synthetic(run)
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return push_folder(
        folder,
        how.repo_id,
        repo_type="dataset",
        under=made.under,
        private=how.private,
        token=how.token,
        revision=how.revision,
        message=f"Push {made.under}",
        dry_run=how.dry_run,
    )


def _synthetic(run: Path) -> bool:
    return (run / "world").is_dir()


def _license(run: Path) -> str | None:
    """The embedded world is ours to license; of other data nothing is claimed."""
    return "apache-2.0" if _synthetic(run) else None


def _report(run: Path) -> dict[str, Any]:
    if not (run / "report.json").is_file():
        raise ArtifactError(f"{run} has no report.json; finish it with: pulse evaluate --run {run}")
    return dict(read_json(run / "report.json"))


def recommender_card(run: Path, how: Publication, record: dict[str, Any], *, pool: int, included: bool) -> str:
    """The card of a run's recommender.

    Args:
        run: The run's folder, with its report.
        how: Where it is published and under which licence.
        record: What ``pulse.json`` holds.
        pool: People whose item lists are in it.
        included: Whether the base model is in it.
    """
    report, items = _report(run), load_items(run)
    synthetic, stated = _synthetic(run), how.license or _license(run)
    return cards.render(
        "recommender",
        metadata=cards.model_metadata(
            library="pulse-hf",
            pipeline="text-ranking",
            tags=["explainable", "rationales", *(() if how.merge else ("lora", "peft"))],
            license_id=stated,
            base_model=record["base_model"],
            datasets=[how.dataset] if how.dataset else (),
            results=cards.eval_results(report, "pulse", _data_name(run, how), how.dataset),
            name=how.name,
            synthetic=synthetic,
        ),
        name=cards.plain(how.name),
        repo_id=how.repo_id,
        history=json.dumps([cards.plain(item.title) for item in items[:2]], ensure_ascii=False),
        protocol=report["protocol"],
        systems=cards.systems_table(report),
        comparisons=cards.against_the_strongest(report),
        worth=cards.worth_of_a_reason(report),
        audit=report["audit"],
        adapter=not how.merge,
        base=how.repo_id if included else record["base_model"],
        base_subfolder="base" if included else "",
        base_model=record["base_model"],
        base_included=included,
        items=len(items),
        pool=pool,
        license=stated,
    )


def _data_name(run: Path, how: Publication) -> str:
    return "embedded synthetic shop" if _synthetic(run) else how.dataset or run.resolve().name


def _recommender(run: Path, folder: Path, how: Publication) -> None:
    from pulse_hf.recommender import PulseRecommender
    from pulse_hf.saving import require_public

    verify(run / "recommender")
    recommender = PulseRecommender.from_run(run)
    require_public(recommender.parts)
    recommender.save_pretrained(folder, merge=how.merge)
    card = recommender_card(
        run,
        how,
        dict(recommender.parts.record),
        pool=len(recommender.parts.pool.item_ids),
        included=(folder / "base").is_dir(),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    if how.dataset:
        (folder / EVAL_RESULTS).mkdir()
        text = cards.eval_results_file(_report(run), "pulse", how.dataset)
        (folder / EVAL_RESULTS / "pulse.yaml").write_text(text, encoding="utf-8")
        seal_folder(folder, "recommender")


def _thought_space(run: Path, folder: Path, how: Publication) -> None:
    from pulse_hf.models.thought_space import PulseThoughtSpaceModel

    verify(run / "thought_space")
    PulseThoughtSpaceModel.from_pretrained(run / "thought_space" / "model").save_pretrained(folder)
    (folder / "README.md").write_text(
        _thought_space_card(run, how, library="transformers", tags=["rationales", "contrastive-learning"]),
        encoding="utf-8",
    )
    seal_folder(folder, "thought-space")


def _thought_space_card(run: Path, how: Publication, *, library: str, tags: list[str]) -> str:
    fit = read_json(run / "thought_space" / "metrics.json")["models"]["model"]
    encoder = json.loads(read_manifest(run / "thought_space")["fingerprint"]["settings.encoder"])
    stated = how.license or _license(run)
    first = load_items(run)[0]
    return cards.render(
        "thought_space" if library == "transformers" else "sentence_transformer",
        metadata=cards.model_metadata(
            library=library,
            pipeline="sentence-similarity",
            tags=tags,
            license_id=stated,
            base_model=encoder,
            datasets=[how.dataset] if how.dataset else (),
            synthetic=_synthetic(run),
        ),
        name=cards.plain(how.name),
        repo_id=how.repo_id,
        synthetic=_synthetic(run),
        history=f"Bought: {cards.plain(first.title)}.",
        validation=cards.matching(fit["validation"]),
        pairs=fit["pairs"]["fitted"],
        encoder=encoder,
        license=stated,
    )


def _sentence_transformer(run: Path, folder: Path, how: Publication) -> None:
    from pulse_hf.models.thought_space import PulseThoughtSpaceModel
    from pulse_hf.models.thought_space.sentence_transformer import export_sentence_transformer

    verify(run / "thought_space")
    export_sentence_transformer(PulseThoughtSpaceModel.from_pretrained(run / "thought_space" / "model").eval(), folder)
    card = _thought_space_card(run, how, library="sentence-transformers", tags=["rationales"])
    (folder / "README.md").write_text(card, encoding="utf-8")
    seal_folder(folder, "sentence-transformer")


def _sequential(run: Path, folder: Path, how: Publication) -> None:
    from pulse_hf.models.sasrec import PulseSASRecModel

    verify(run / "sequential")
    PulseSASRecModel.from_pretrained(run / "sequential" / "sasrec").save_pretrained(folder)
    (folder / "catalogue").mkdir()
    copyfile(run / "sequences" / "items.parquet", folder / "catalogue" / "items.parquet")
    fit = read_manifest(run / "sequential")["counts"]["fits"]["sasrec"]
    report = _report(run) if (run / "report.json").is_file() else None
    results = cards.eval_results(report, "sasrec", _data_name(run, how), how.dataset) if report else None
    stated = how.license or _license(run)
    card = cards.render(
        "sequential",
        metadata=cards.model_metadata(
            library="transformers",
            pipeline=None,
            tags=["sequential-recommendation", "sasrec"],
            license_id=stated,
            datasets=[how.dataset] if how.dataset else (),
            results=results,
            name=how.name,
            synthetic=_synthetic(run),
        ),
        name=cards.plain(how.name),
        repo_id=how.repo_id,
        synthetic=_synthetic(run),
        targets=fit["targets"],
        users=fit["users"],
        items=len(load_items(run)),
        hr=cards.span(report["systems"]["sasrec"]["hr@1"]) if report else None,
        negatives=report["protocol"]["negatives"] if report else None,
        license=stated,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    seal_folder(folder, "sequential")


def _metric(run: Path, folder: Path, how: Publication) -> None:
    """``evaluate.load("owner/name")`` looks for ``name.py``."""
    copytree(shipped("hub_cards") / "metric", folder, dirs_exist_ok=True, ignore=ignore_patterns("__pycache__"))
    (folder / "metric.py").rename(folder / f"{how.name}.py")


def _space(run: Path, folder: Path, how: Publication) -> None:
    """The app with this package beside it, so that a Space needs no other copy of it."""
    rubbish = ignore_patterns("__pycache__", "*.pyc", "py.typed", "shipped")
    copytree(shipped("spaces_app"), folder, dirs_exist_ok=True, ignore=rubbish)
    copytree(PACKAGE, folder / "pulse_hf", ignore=rubbish)
