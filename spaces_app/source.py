"""Where the recommender comes from: a published repo or folder, a finished run, or the embedded demo made here.

It is opened in the background, so that the page is there at once and can say how far it is.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from answers import Answers
from inputs import RefusedError
from rationale_table import RationaleTable, rationales_of_dataset, rationales_of_run, shown_name

from pulse_hf.artifacts import ArtifactError
from pulse_hf.composition import NoWriterError, OtherVersionError
from pulse_hf.data.world.stage import is_synthetic
from pulse_hf.hub.transfer import NoAccessError
from pulse_hf.recommender import Event, PulseRecommender
from pulse_hf.stages import ROAD

logger = logging.getLogger(__name__)

DEFAULT_RUN = "runs/demo"
RETRY_S = 60.0
POLL_S = 1.0
NEEDED = [stage for stage in ROAD if stage.word not in ("baselines", "evaluate")]
MAKING = ("accelerate", "datasets", "matplotlib", "scipy", "sklearn", "trl")  # of the extra `train`
LOST = {"ConnectionError", "TimeoutError", "HfHubHTTPError", "LocalEntryNotFoundError", "TransportError"}
ABSENT = {"FileNotFoundError", "GatedRepoError", "RepositoryNotFoundError"}
NO_RATIONALES = "No rationale dataset is shown here; its owner can name one in PULSE_DATASET_ID."

State = Literal["loading", "making", "ready", "failed"]


@dataclass(frozen=True)
class Status:
    """How far it is.

    Args:
        state: ``"ready"`` when there are answers.
        heading: For the page.
        sentence: For the page.
        fraction: Done, in [0, 1]; ``None`` where nothing is counted.
    """

    state: State
    heading: str
    sentence: str
    fraction: float | None = None


class NotMadeError(RuntimeError):
    """The embedded demo cannot be made here; the message is a sentence for people."""


class Source:
    """The recommender behind the page, opened in the background.

    Args:
        repo_id: A published recommender's repo id or folder; wins over a run.
        run: A run folder; ``None`` for the embedded demo in ``runs/demo``, made here if it is not there.
        dataset_id: A rationale dataset to leaf through where the recommender brings none.
    """

    def __init__(self, repo_id: str = "", run: str | None = None, dataset_id: str = "") -> None:
        self.repo_id, self.dataset_id = repo_id, dataset_id
        self.run = Path(run or DEFAULT_RUN)
        self.may_make = not repo_id and run is None
        self.answers: Answers | None = None
        self.no_rationales = NO_RATIONALES  # the sentence where there are none
        self._stopped = threading.Event()
        self.status = Status("loading", "Opening the recommender", "The model is being read; this takes seconds.")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Source:
        """From ``PULSE_REPO_ID``, ``PULSE_RUN`` and ``PULSE_DATASET_ID``."""
        given = {name: environment.get(f"PULSE_{name}", "").strip() for name in ("REPO_ID", "RUN", "DATASET_ID")}
        return cls(given["REPO_ID"], given["RUN"] or None, given["DATASET_ID"])

    @classmethod
    def of(cls, answers: Answers) -> Source:
        """A source that is ready."""
        source = cls()
        source._is_ready(answers)
        return source

    @property
    def ready(self) -> bool:
        """Whether answers can be given."""
        return self.answers is not None

    def stop(self) -> None:
        """Try no more to open it; a demo that is being made goes on from where it was when it is opened again."""
        self._stopped.set()

    def start(self) -> None:
        """Open it in the background."""
        threading.Thread(target=self._open, name="open", daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Wait while it is merely being read, so that the first page is the right one."""
        end = time.monotonic() + seconds
        while self.status.state == "loading" and time.monotonic() < end:
            time.sleep(0.05)

    def _open(self) -> None:
        while self.answers is None and not self._stopped.is_set():
            try:
                if self.may_make and not _is_whole(self.run):
                    self._make()
                if not self._stopped.is_set():
                    self._is_ready(self._loaded())
            except Exception as problem:  # whatever is wrong with a repo, the page must stay up and say so
                logger.exception("the recommender could not be opened")
                self.status = Status("failed", "No recommender could be opened", _sentence(problem, self._name()))
                self._stopped.wait(RETRY_S)

    def _is_ready(self, answers: Answers) -> None:
        if self._stopped.is_set():  # while it was read
            answers.mind.close()
            return
        # The first person should not pay for the first pass, neither for that of a title outside the catalogue.
        try:
            with answers.mind.patient():
                answers.answer([Event("a first thing"), *answers.examples[0]])
        except BaseException:
            answers.mind.close()  # it is opened anew, and two of it may be too many
            raise
        self.answers = answers
        self.status = Status("ready", "Ready", answers.subject)

    def _name(self) -> str:
        return shown_name(self.repo_id) if self.repo_id else self.run.name

    def _loaded(self) -> Answers:
        rationales: RationaleTable | None = None
        if self.repo_id:
            recommender = PulseRecommender.from_pretrained(self.repo_id)
        else:
            recommender = PulseRecommender.from_run(self.run)
            rationales = rationales_of_run(self.run, recommender.users, recommender.parts.items)
        aligned = rationales is not None
        if rationales is None and self.dataset_id:
            try:
                rationales = rationales_of_dataset(self.dataset_id, recommender.parts.items)
            except Exception as problem:  # the rationales are an extra; the recommender works without them
                logger.exception("the rationale dataset could not be opened")
                self.no_rationales = _unread(problem, shown_name(self.dataset_id))
        synthetic = not self.repo_id and is_synthetic(self.run)
        name = "The embedded demo, a synthetic shop" if synthetic else self._name()
        subject = f"{name} · {len(recommender.parts.items):,} items"
        count = len(recommender.parts.shared.vectors)
        subject += f" · {count:,} stored reasons" if count else ""
        return Answers(recommender, rationales, subject, aligned=aligned)

    def _make(self) -> None:
        """Make the embedded demo up to its recommender, or until stopped; a run that was cut off goes on where it was.

        Raises:
            NotMadeError: Something to make it with is not installed, or it failed.
        """
        missing = [name for name in MAKING if importlib.util.find_spec(name) is None]
        if missing:
            raise NotMadeError(
                f"The embedded demo is made by training, and {missing[0]} is not installed here: "
                "pip install 'pulse-hf[train,demo]', or name a published recommender in PULSE_REPO_ID."
            )
        words = [stage.word for stage in NEEDED]
        command = [sys.executable, "-c", "from pulse_hf.cli.main import main; main()", "run", "--preset", "demo"]
        process = subprocess.Popen([*command, "--run", str(self.run), "--until", words[-1]])
        while process.poll() is None:
            if self._stopped.is_set():
                process.terminate()
                process.wait()
                return
            done = _stages_done(self.run)
            doing = NEEDED[min(done, len(NEEDED) - 1)]
            self.status = Status(
                "making",
                "Making the embedded demo",
                f"Nothing was published here yet, so a small synthetic shop is made on this machine; it takes about "
                f"five minutes. Step {min(done + 1, len(words))} of {len(words)}: {doing.purpose}.",
                done / len(words),
            )
            self._stopped.wait(POLL_S)
        if process.returncode:
            raise NotMadeError(
                f"The embedded demo could not be made (exit code {process.returncode}); this Space's log says why."
            )
        self.status = Status("loading", "Opening the recommender", "The model is being read; this takes seconds.", 1.0)


def _is_whole(run: Path) -> bool:
    return _stages_done(run) == len(NEEDED)


def _stages_done(run: Path) -> int:
    """Stages finished in a row from the start."""
    for done, stage in enumerate(NEEDED):
        if not (run / stage.folder / "manifest.json").exists():
            return done
    return len(NEEDED)


def _sentence(problem: Exception, name: str) -> str:
    """What to tell people: what is wrong in kind and what the owner can do; details are in the log."""
    kinds = {kind.__name__ for kind in type(problem).__mro__}
    again = "It is tried again every minute."
    if isinstance(problem, NotMadeError):
        return f"{problem} {again}"
    if isinstance(problem, NoAccessError):
        checks = "Its owner can check PULSE_REPO_ID and, if it is private, HF_TOKEN."
        return f"There is no readable repo {name}. {checks} {again}"
    if kinds & LOST:
        return f"The Hub did not answer while {name} was opened. {again}"
    if isinstance(problem, ArtifactError | FileNotFoundError):
        return f"{name} is no recommender that this Space can open{_why(problem)} {again}"
    return f"{name} could not be read; the log of this Space says why. {again}"


def _why(problem: Exception) -> str:
    if isinstance(problem, NoWriterError):
        return ": a server writes its reasons, and this page knows none."
    if isinstance(problem, OtherVersionError):
        return ": another version of this package made it. Its owner can publish it anew with this one."
    return ": a file is missing or damaged. Its owner can publish it anew."


def _unread(problem: Exception, name: str) -> str:
    """What to tell people of a rationale dataset that was named and is not shown."""
    kinds = {kind.__name__ for kind in type(problem).__mro__}
    if isinstance(problem, RefusedError):
        why = str(problem)
    elif isinstance(problem, ModuleNotFoundError):
        why = "Reading datasets needs an extra here: pip install 'pulse-hf[train]'."
    elif kinds & ABSENT:
        why = "There is no dataset of that name with files that can be read; its owner can check PULSE_DATASET_ID."
    elif kinds & LOST:
        why = "The Hub did not answer."
    else:
        why = "Its files are damaged, or it holds no table of rationales."
    return f"The rationale dataset {name} could not be read. {why}"


def from_environment() -> Source:
    """The source that the environment names."""
    return Source.from_environment(os.environ)
