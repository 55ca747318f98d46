"""``pulse``: one word per stage, ``run`` for the whole road, ``recommend`` to use what came out."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pulse_hf.cli import hub
from pulse_hf.models.device import few_compiled_products
from pulse_hf.stages import ROAD, Stage

if TYPE_CHECKING:
    from pulse_hf.settings import RunSettings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Run = Annotated[Path, typer.Option("--run", help="Run folder; every stage has its own folder inside.")]
SettingsFile = Annotated[
    Path | None, typer.Option("--settings", help="JSON file with a group per stage, on top of the preset.")
]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="stage.key=value, may be repeated; wins over the file.")
]
Recipe = Annotated[
    str | None,
    typer.Option(help="Filters and expected counts of a known dataset, for example luxury-beauty/paper."),
]
Force = Annotated[bool, typer.Option("--force", help="Make anew what was made from other settings or inputs.")]


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("pulse-hf"))
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    """Recommendation that knows why. Start with: pulse run --preset demo."""


def _settings(preset: str, recipe: str | None, file: Path | None, assignments: list[str] | None) -> RunSettings:
    from dataclasses import replace

    from pulse_hf.data.recipes import recipe_named
    from pulse_hf.presets import preset_named
    from pulse_hf.settings import load_settings, override

    settings = preset_named(preset)
    if recipe is not None:
        typer.echo(recipe_named(recipe).difference(), err=True)
        settings = replace(settings, prepare=recipe_named(recipe).settings)
    if file is not None:
        settings = load_settings(file, settings)
    return override(settings, assignments or [])


def _settings_for(
    run: Path, otherwise: str, preset: str | None, recipe: str | None, file: Path | None, assignments: list[str] | None
) -> RunSettings:
    """The run's own settings where nobody names others; of a new run those of the preset ``otherwise``."""
    from pulse_hf.pipeline import settings_of_run
    from pulse_hf.settings import override

    own = settings_of_run(run) if (preset, recipe, file) == (None, None, None) else None
    if own is not None:
        return override(own, assignments or [])
    return _settings(preset or otherwise, recipe, file, assignments)


def _stage_command(stage: Stage) -> None:
    @app.command(stage.word, help=stage.purpose[0].upper() + stage.purpose[1:] + ".")
    def command(
        run: Run,
        preset: Annotated[
            str | None, typer.Option(help="demo, small or paper; by default the run's own settings, else small.")
        ] = None,
        recipe: Recipe = None,
        settings: SettingsFile = None,
        assignments: Assignments = None,
        force: Force = False,
    ) -> None:
        from pulse_hf.artifacts import process
        from pulse_hf.cli.faults import require_run
        from pulse_hf.pipeline import run_stage

        if stage.word not in _BEGINNING:
            require_run(run)
        chosen = _settings_for(run, "small", preset, recipe, settings, assignments)
        folder = run_stage(stage, run, chosen, force=force)
        if process() == 0:
            typer.echo(folder)


_BEGINNING = ("world", "prepare")  # they make the run's folder


@app.command("run")
def run_command(
    preset: Annotated[
        str | None,
        typer.Option(help="demo (embedded, synthetic), small or paper; by default the run's own settings, else demo."),
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", help="Run folder; runs/<preset> by default.")] = None,
    recipe: Recipe = None,
    settings: SettingsFile = None,
    assignments: Assignments = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    force: Force = False,
    processes: Annotated[
        int,
        typer.Option(min=1, help="Write texts in so many processes of this machine: the same texts, on CPUs sooner."),
    ] = 1,
) -> None:
    """Run the whole road; finished stages are skipped, a killed run goes on where it was."""
    from pulse_hf.artifacts import process
    from pulse_hf.pipeline import run_road, token_budget

    folder = run if run is not None else Path("runs") / (preset or "demo")
    chosen = _settings_for(folder, "demo", preset, recipe, settings, assignments)
    budget = ", ".join(f"{value:,} {name}" for name, value in token_budget(chosen).items())
    typer.echo(f"at most {budget}{'' if chosen.world else ' (per user)'}; run folder {folder}", err=True)
    told = {"--preset": preset or ("demo" if recipe or settings else None), "--recipe": recipe, "--settings": settings}
    options = [f"{name}={value}" for name, value in told.items() if value] + (["--force"] if force else [])
    options += [f"--set={one}" for one in assignments or ()]

    def written_by_several(word: str) -> None:
        from pulse_hf.cli.launch import launch

        code = launch([word, f"--run={folder}", *options], processes)
        if code:
            raise typer.Exit(code)

    run_road(folder, chosen, until=until, force=force, launch=written_by_several if processes > 1 else None)
    if until in (None, "evaluate") and process() == 0:
        _show(folder)


@app.command("settings")
def settings_command(
    preset: Annotated[str, typer.Option(help="demo, small or paper.")] = "small",
    recipe: Recipe = None,
    settings: SettingsFile = None,
    assignments: Assignments = None,
) -> None:
    """Print every setting of a run as JSON, as --set and --settings name them."""
    import json
    from dataclasses import asdict

    typer.echo(json.dumps(asdict(_settings(preset, recipe, settings, assignments)), indent=2))


def _show(folder: Path) -> None:
    from pulse_hf.cli.show import show_examples, show_report

    show_report(folder)
    show_examples(folder, count=3)


@app.command()
def recommend(
    run: Annotated[Path, typer.Option("--run", help="A finished run, or a folder saved by PulseRecommender.")],
    user: Annotated[str | None, typer.Option(help="A user id of the run.")] = None,
    history: Annotated[
        list[str] | None,
        typer.Option(help="A title, or an item id where no title is that; oldest first, may be repeated."),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many items.")] = 10,
    rationale: Annotated[str | None, typer.Option(help="Your own reason instead of a generated one.")] = None,
) -> None:
    """Print a ranked list with reasons for a user of the run or for a typed history."""
    from pulse_hf.cli.show import show_recommendations

    show_recommendations(run, user=user, history=history or [], k=k, rationale=rationale)


@app.command()
def audit(run: Run) -> None:
    """Swap all validation and test targets and check that no training input changes."""
    from pulse_hf.cli.faults import require_run
    from pulse_hf.cli.show import show_audit

    require_run(run)
    if not show_audit(run):
        raise typer.Exit(6)


for _stage in ROAD:
    _stage_command(_stage)
for _command in (hub.push, hub.pull, hub.space):
    app.command()(_command)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":  # not `process()`: a signal may come before anything is imported
        typer.echo("\nstopped; the same command goes on from here", err=True)
    raise SystemExit(128 + number)


def main() -> None:
    """Entry point: a user's mistake is one clear line, a bug is a traceback.

    Exit codes: 0 done, 1 bug, 2 bad input, path, setting or token, 3 somebody else changed the repo meanwhile, 4 disk
    or memory full, 5 no answer from a server, 6 an artefact or number that cannot be trusted, 130 and 143 stopped by a
    signal, 137 a process of several was killed.
    """
    from pulse_hf.artifacts import process
    from pulse_hf.cli.faults import known_fault

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    few_compiled_products()
    first = process() == 0  # of several launched together only one speaks
    if not first:
        os.environ["TQDM_DISABLE"] = "1"
    logging.basicConfig(level=logging.INFO if first else logging.ERROR, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "transformers", "sentence_transformers", "datasets", "matplotlib", "trl", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Deprecations inside the libraries are for us (the test suite shows them), not for whoever runs a command.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        app()
    except Exception as error:
        known = known_fault(error)
        if known is None:
            raise
        code, sentence = known
        typer.echo(f"error: {sentence}", err=True)
        sys.exit(code)


if __name__ == "__main__":
    main()
