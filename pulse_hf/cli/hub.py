"""``pulse push``, ``pulse pull`` and ``pulse space``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pulse_hf.hub.transfer import Pushed

# Written out, not taken from pulse_hf.publish: help must start without importing it.
_WHAT = (
    "recommender, thought-space, sequential, sentence-transformer (models); rationales, thoughts, sequences, "
    "candidates (datasets); metric, space (Spaces)."
)


def push(
    what: Annotated[str, typer.Argument(help=_WHAT)],
    repo: Annotated[str, typer.Argument(help="owner/name; made if absent.")],
    run: Annotated[Path, typer.Option("--run", help="A finished run; not needed for metric and space.")] = Path("."),
    config: Annotated[
        str | None, typer.Option(help="Name of a dataset's configuration; the run's folder name by default.")
    ] = None,
    license_id: Annotated[
        str | None, typer.Option("--license", help="Licence by the Hub's name, for example apache-2.0.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Repo of the published data, named in a model's card.")] = None,
    private: Annotated[
        bool, typer.Option("--private", help="A new repo is private; a public one is refused.")
    ] = False,
    include_reviews: Annotated[
        bool, typer.Option("--include-reviews", help="Keep people's reviews, and texts that quote them, in datasets.")
    ] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Merge the recommender's adapter into its base.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; made from main if absent.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List files and sizes, send nothing.")] = False,
) -> None:
    """Publish an artefact of a run in one commit (the token is the one of: hf auth login)."""
    from pulse_hf.cli.faults import require_run
    from pulse_hf.publish import Publication, publish

    require_run(run)
    how = Publication(
        repo_id=repo,
        private=True if private else None,
        revision=revision,
        license=license_id,
        config=config,
        dataset=dataset,
        include_reviews=include_reviews,
        merge=merge,
        dry_run=dry_run,
    )
    _show_pushed(publish(what, run, how), dry_run=dry_run)


def _show_pushed(pushed: Pushed, *, dry_run: bool) -> None:
    for one in pushed.changed:
        typer.echo(f"  {one.size:>13,}  {one.path}")
    for name in pushed.deleted:
        typer.echo(f"        deleted  {name}")
    if dry_run:
        typer.echo(
            f"{len(pushed.changed)} files, {pushed.num_bytes:,} bytes would go to {pushed.repo_id}; nothing was sent"
        )
    elif pushed.commit is None:
        typer.echo(f"{pushed.repo_id} has all of this already; no commit was made")
    else:
        typer.echo(
            f"{pushed.repo_id}: commit {pushed.commit}, {len(pushed.changed)} files, {pushed.num_bytes:,} bytes"
        )


def pull(
    repo: Annotated[str, typer.Argument(help="owner/name of a repo that pulse push made.")],
    config: Annotated[
        str | None,
        typer.Option(help="For a dataset: CONFIG/ARTEFACT, for example luxury-beauty/rationales."),
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", help="For a dataset: the run that gets the artefact.")] = None,
    to: Annotated[Path | None, typer.Option(help="For a model: copy it into this folder.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another version that is there.")] = False,
) -> None:
    """Fetch a published model or dataset and check every file against its sha256."""
    from pulse_hf.hub.dataset_import import place_dataset
    from pulse_hf.hub.files import copy_sealed
    from pulse_hf.hub.refusals import NoAccessError
    from pulse_hf.hub.transfer import pull as fetch

    if (config is None) != (run is None):
        raise ValueError("a dataset needs both --config CONFIG/ARTEFACT and --run FOLDER; a model neither")
    if config is not None and "/" not in config:
        raise ValueError(f"--config is {config!r}, expected CONFIG/ARTEFACT, for example {config}/rationales")
    if config is not None and run is not None:
        folder = fetch(repo, repo_type="dataset", under=config, revision=revision)
        commit = folder.parents[len(Path(config).parts) - 1].name
        typer.echo(place_dataset(folder, run, source=f"{repo}@{commit}", force=force))
        return
    try:
        folder = fetch(repo, revision=revision)
    except NoAccessError as error:
        raise NoAccessError(f"{error} A dataset is asked for by --config CONFIG/ARTEFACT and --run FOLDER.") from error
    if to is None:
        typer.echo(folder)
        return
    # A pull that was killed leaves its unfinished work, and is simply run again.
    if to.exists() and any(path.name != ".saving" for path in to.iterdir()) and not force:
        raise ValueError(f"{to} is not empty; name a new folder or give --force")
    copy_sealed(folder, to)
    typer.echo(to)


def space(
    repo: Annotated[str | None, typer.Option(help="A published recommender to serve.")] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Otherwise a finished run; runs/demo by default, made if absent.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 7860,
) -> None:
    """Start the interactive Space on this machine."""
    import importlib.util
    import os
    import subprocess
    import sys

    from pulse_hf.cli.faults import require_run
    from pulse_hf.hub.shipped import shipped

    if run is not None:
        require_run(run)
    if importlib.util.find_spec("gradio") is None:
        raise ModuleNotFoundError("the Space needs gradio", name="gradio")

    environment = {
        "PULSE_REPO_ID": repo or "",  # what this shell may have set for another Space counts no more
        "PULSE_RUN": str(run.resolve()) if run else "",
        "GRADIO_SERVER_PORT": str(port),
    }
    app = shipped("spaces_app") / "app.py"
    raise typer.Exit(subprocess.call([sys.executable, str(app)], env=os.environ | environment))
