"""From a finished run, or a loaded recommender, to repos of the Hub: which files are published, under which card."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfile, copytree, ignore_patterns
from tempfile import TemporaryDirectory
from typing import Any

from pulse_hf.artifacts import verify
from pulse_hf.composition import Parts, parts_of_run
from pulse_hf.data.world.stage import is_synthetic
from pulse_hf.hub.cards import with_kept_metadata
from pulse_hf.hub.dataset_export import WORDS, export_dataset
from pulse_hf.hub.files import seal_folder
from pulse_hf.hub.model_cards import ModelCards
from pulse_hf.hub.repos import RepoType, card_of, head_of, require_repo_id, require_writable
from pulse_hf.hub.shipped import PACKAGE, shipped
from pulse_hf.hub.transfer import Pushed, push_folder
from pulse_hf.saving import save_published

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
        head: The commit that the push is to follow; the repo's newest by default.
        before: The repo's card at that commit, whose owner may have added to it.
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
    head: str | None = None
    before: str = ""

    def cards(self, run: Path) -> ModelCards:
        """The cards of a run's models, as published this way."""
        return ModelCards(run, self.repo_id, self.license, self.dataset, self.before)

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
        ValueError: There is nothing of that name to publish, or the repo is not one that it may go to.
        ArtifactError: The artefact is missing, damaged, or may not leave this machine.
        NoAccessError: The token may not write there.
        ConnectionError: The Hub could not be reached.
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
    kind: RepoType = "dataset" if word in WORDS else "space" if word in APPS else "model"
    how = _following(how, kind)
    with TemporaryDirectory() as name:
        folder = Path(name) / "repo"
        folder.mkdir()
        under = ""
        if word in WORDS:
            under = _dataset(word, run, folder, how)
        else:
            makers[word](run, folder, how)
        return _send(folder, how, kind, f"Push {under or word}", under=under, code=word not in WORDS)


def push_recommender(
    parts: Parts, run: Path | None, how: Publication, *, message: str, turn: AbstractContextManager[Any]
) -> Pushed:
    """Publish a recommender that is loaded.

    Args:
        parts: What it is composed of.
        run: The run with a report that its card tells of; ``None`` for no card, the repo's own then stays.
        how: Where to and how.
        message: The commit's message.
        turn: Held while it is saved, so that nobody asks it meanwhile, and not while it is sent.

    Raises:
        ValueError: The repo is not one that it may go to; asked, like the next, before anything is saved.
        NoAccessError: The token may not write there.
        ArtifactError: A part lies on this machine only, or somebody else changed the repo meanwhile.
        ConnectionError: The Hub could not be reached.
    """
    how = _following(how, "model")
    with TemporaryDirectory() as name:
        folder = Path(name) / "repo"
        with turn:
            save_published(parts, folder, how.cards(run) if run else None, merge=how.merge)
        return _send(folder, how, "model", message)


def _following(how: Publication, kind: RepoType) -> Publication:
    """With what is in the repo now: whoever pushes meanwhile makes the push be refused. A dry run asks nobody.

    Asked before anything is made, which may take minutes, and told in vain.
    """
    require_repo_id(how.repo_id)
    if how.dry_run:
        return how
    require_writable(how.repo_id, kind, private=how.private, token=how.token)
    head = head_of(how.repo_id, kind, revision=how.revision, token=how.token)
    before = card_of(how.repo_id, kind, revision=head, token=how.token) if head else ""
    return replace(how, head=head, before=before)


def _send(
    folder: Path, how: Publication, kind: RepoType, message: str, *, under: str = "", code: bool = True
) -> Pushed:
    return push_folder(
        folder,
        how.repo_id,
        repo_type=kind,
        under=under,
        parent=how.head,
        private=how.private,
        token=how.token,
        revision=how.revision,
        message=message,
        code=code,
        dry_run=how.dry_run,
    )


def _dataset(word: str, run: Path, folder: Path, how: Publication) -> str:
    from pulse_hf.hub.dataset_card import dataset_card

    verify(run / word)
    config = how.config or run.resolve().name
    made = export_dataset(run, word, folder, config=config, include_reviews=how.include_reviews)
    card = dataset_card(made, how.repo_id, before=how.before, license_id=how.license, synthetic=is_synthetic(run))
    (folder / "README.md").write_text(card, encoding="utf-8")
    return made.under


def _recommender(run: Path, folder: Path, how: Publication) -> None:
    verify(run / "recommender")
    save_published(parts_of_run(run)[0], folder, how.cards(run), merge=how.merge)


def _thought_space(run: Path, folder: Path, how: Publication) -> None:
    from pulse_hf.models.thought_space import PulseThoughtSpaceModel

    verify(run / "thought_space")
    PulseThoughtSpaceModel.from_pretrained(run / "thought_space" / "model").save_pretrained(folder)
    (folder / "README.md").write_text(how.cards(run).thought_space(), encoding="utf-8")
    seal_folder(folder, "thought-space")


def _sentence_transformer(run: Path, folder: Path, how: Publication) -> None:
    from pulse_hf.models.thought_space import PulseThoughtSpaceModel
    from pulse_hf.models.thought_space.sentence_transformer import export_sentence_transformer

    verify(run / "thought_space")
    export_sentence_transformer(PulseThoughtSpaceModel.from_pretrained(run / "thought_space" / "model").eval(), folder)
    card = how.cards(run).thought_space(as_sentence_transformer=True)
    (folder / "README.md").write_text(card, encoding="utf-8")
    seal_folder(folder, "sentence-transformer")


def _sequential(run: Path, folder: Path, how: Publication) -> None:
    from pulse_hf.models.sasrec import PulseSASRecModel

    verify(run / "sequential")
    PulseSASRecModel.from_pretrained(run / "sequential" / "sasrec").save_pretrained(folder)
    (folder / "catalogue").mkdir()
    copyfile(run / "sequences" / "items.parquet", folder / "catalogue" / "items.parquet")
    (folder / "README.md").write_text(how.cards(run).sequential(), encoding="utf-8")
    seal_folder(folder, "sequential")


def _metric(run: Path, folder: Path, how: Publication) -> None:
    """``evaluate.load("owner/name")`` looks for ``name.py``; the repo's page is ``app.py``."""
    if how.name == "app":
        raise ValueError(f"{how.repo_id}: app.py is the page of a metric's repo; name the metric otherwise")
    copytree(shipped("hub_cards") / "metric", folder, dirs_exist_ok=True, ignore=ignore_patterns("__pycache__"))
    (folder / "metric.py").rename(folder / f"{how.name}.py")
    _finish_app(folder, "metric", how)


def _space(run: Path, folder: Path, how: Publication) -> None:
    """The app with this package beside it, so that a Space needs no other copy of it."""
    rubbish = ignore_patterns("__pycache__", "*.pyc", "py.typed", "shipped")
    copytree(shipped("spaces_app"), folder, dirs_exist_ok=True, ignore=rubbish)
    copytree(PACKAGE, folder / "pulse_hf", ignore=rubbish)
    _finish_app(folder, "space", how)


def _finish_app(folder: Path, word: str, how: Publication) -> None:
    """The card with the repo's name and what its owner set, and a seal: a later push takes away what is gone."""
    card = (folder / "README.md").read_text(encoding="utf-8").replace("OWNER/NAME", how.repo_id)
    (folder / "README.md").write_text(with_kept_metadata(card, how.before), encoding="utf-8")
    seal_folder(folder, word)
