"""What is kept of unfinished work: shards of rows, checkpoints of a fit, and batches that a signal does not tear.

All of it lies in folders whose names begin with a dot inside a stage's work folder, and goes when that is finished.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from pulse_hf.artifacts.files import (
    ArtifactError,
    fsync,
    read_json,
    read_table,
    read_tensors,
    sha256_of_file,
    write_json,
    write_table,
    write_tensors,
)
from pulse_hf.artifacts.processes import process, wait_for_all
from pulse_hf.schema import table_schema

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

_WORK_PER_SAVE = 50  # ours: at most about 2 % of the time goes into keeping states
_SECOND_WISH_S = 1.0  # a signal that comes sooner after the first is taken for the same one


class Shards:
    """Append-only rows for long generation: every batch becomes one finished Parquet file.

    A killed run loses at most the batch it was working on. A shard is written to a temporary file and renamed; one
    that cannot be read all the same (a lost power supply, a bad disk) is taken away with a warning, and its rows are
    made again. Of several launched processes each appends to a folder of its own and reads them all.

    Args:
        work: A stage's work folder.
        name: Of these shards.
        table: The schema name of the rows.

    Example:
        >>> import tempfile
        >>> shards = Shards(Path(tempfile.mkdtemp()), "some", "decisions")
        >>> shards.append([{"decision_id": "u#1", "user_id": "u", "position": 1, "split": "test"}])
        >>> sorted(shards.done()), shards.read().num_rows
        (['u#1'], 1)
    """

    def __init__(self, work: Path, name: str, table: str) -> None:
        self.work, self.name, self.table = work, name, table
        self.folder = work / f".{name}-{process()}"
        self.folder.mkdir(parents=True, exist_ok=True)
        if process() == 0:
            self._mend()
        wait_for_all()

    def _mend(self) -> None:
        for path in self.work.glob(f".{self.name}-*/.*"):
            path.unlink()
        for file in self._files():
            try:
                read_table(file)
            except ArtifactError as error:
                logger.warning("%s cannot be read and is made again (%s)", file, error)
                file.unlink()

    def _files(self) -> list[Path]:
        return sorted(self.work.glob(f".{self.name}-*/shard-*.parquet"), key=_place)

    def append(self, rows: Iterable[Any]) -> None:
        """Add one batch of rows as the next shard."""
        files = sorted(self.folder.glob("shard-*.parquet"), key=_place)
        number = _place(files[-1])[1] + 1 if files else 0
        write_table(self.folder / f"shard-{number:05d}.parquet", self.table, rows)

    def keep_only(self, other: Shards) -> None:
        """Take away the shards that the other, written after this one batch by batch, does not have."""
        if process() == 0:
            written = {(file.parent.name.rpartition("-")[2], file.name) for file in other._files()}
            for file in self._files():
                if (file.parent.name.rpartition("-")[2], file.name) not in written:
                    file.unlink()
        wait_for_all()

    def done(self) -> set[str]:
        """The decision ids that already have rows."""
        import pyarrow.parquet as pq

        return {
            key
            for file in self._files()
            for key in pq.read_table(file, columns=["decision_id"])["decision_id"].to_pylist()
        }

    def rows_of(self, decision_ids: Iterable[str]) -> list[dict[str, Any]]:
        """All rows in the order of the decisions.

        Raises:
            ArtifactError: Rows of a decision are missing, or there are some of another.
        """
        place = {decision_id: number for number, decision_id in enumerate(decision_ids)}
        rows = self.read().to_pylist()
        wrong = sorted(place.keys() ^ {row["decision_id"] for row in rows})
        if wrong:
            raise ArtifactError(
                f"{self.work}: rows {self.name!r} and decisions differ in {len(wrong)}, the first is {wrong[0]}; "
                "remove this folder and run the stage anew"
            )
        return sorted(rows, key=lambda row: place[row["decision_id"]])

    def read(self) -> pa.Table:
        """All rows in the order they were added."""
        import pyarrow as pa

        tables = [read_table(file) for file in self._files()]
        return pa.concat_tables(tables) if tables else table_schema(self.table).empty_table()


def _place(file: Path) -> tuple[str, int]:
    """A shard's folder and number; by its name alone the hundred-thousandth would stand before others."""
    return file.parent.name, int(file.stem.split("-")[1])


class Checkpoints:
    """States of a fit that a killed run goes on from; the newest one whose files are whole counts.

    Args:
        work: A stage's work folder.
        name: Of the fit.
        keep: How many are kept.
        every_seconds: How much work a kill may cost: :meth:`due` is true when this has passed since the last save, and
            fifty times as long as that save took (but not above twenty times this), so that large states are kept less
            often.

    Example:
        >>> import tempfile, torch
        >>> checkpoints = Checkpoints(Path(tempfile.mkdtemp()), "fit")
        >>> checkpoints.save(1, {"weight": torch.ones(2)}, {"losses": [0.5]})
        >>> step, tensors, state = checkpoints.newest()
        >>> step, tensors["weight"].tolist(), state
        (1, [1.0, 1.0], {'losses': [0.5]})
    """

    def __init__(self, work: Path, name: str, *, keep: int = 2, every_seconds: float = 30.0) -> None:
        self.folder = work / ".checkpoints" / name
        self.keep, self.every_seconds = keep, every_seconds
        self._saved, self._took = time.monotonic(), 0.0

    def due(self) -> bool:
        """Whether it is time to save: short fits are made again sooner than they are kept."""
        patience = min(_WORK_PER_SAVE * self._took, 20 * self.every_seconds)
        return time.monotonic() - self._saved >= max(self.every_seconds, patience)

    def save(self, step: int, tensors: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Keep one state.

        Args:
            step: Its number; higher is newer.
            tensors: Torch tensors by name.
            state: Plain JSON values.
        """
        began = time.monotonic()
        target = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".step-{step:08d}"
        shutil.rmtree(temporary, ignore_errors=True)
        write_tensors(temporary / "tensors.safetensors", tensors)
        write_json(temporary / "state.json", dict(state))
        seal(temporary)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
        fsync(self.folder)
        for path in self._all()[: -self.keep]:
            shutil.rmtree(path)
        self._saved = time.monotonic()
        self._took = self._saved - began

    def newest(self) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
        """Step, tensors and state of the newest whole checkpoint; torn ones are taken away with a warning."""
        for path in reversed(self._all()):
            if sealed(path):
                state = dict(read_json(path / "state.json"))
                return int(path.name.split("-")[1]), read_tensors(path / "tensors.safetensors"), state
            if process() == 0:
                logger.warning("%s is torn; going on from an older checkpoint", path)
                shutil.rmtree(path)
        return None

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def seal(folder: Path) -> None:
    """Write the sha256 of every file of a checkpoint beside them, last, so that a torn one can be told."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    for name in names:
        fsync(folder / name)
    write_json(folder / "seal.json", {name: sha256_of_file(folder / name) for name in names if name != "seal.json"})


def sealed(folder: Path) -> bool:
    """Whether a checkpoint has all its files as they were sealed."""
    try:
        hashes = read_json(folder / "seal.json")
        return all(sha256_of_file(folder / name) == sha256 for name, sha256 in hashes.items())
    except (ArtifactError, OSError, AttributeError):
        return False


@contextmanager
def whole_batch() -> Iterator[Callable[[], bool]]:
    """Let the work inside finish before SIGINT or SIGTERM takes effect; a second signal takes effect at once.

    Outside the main thread signals cannot be held back, and nothing is done.

    Yields:
        A function that says whether a signal waits, for work that keeps itself only from time to time.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    arrived: list[tuple[int, float]] = []
    held = (signal.SIGINT, signal.SIGTERM)

    def hold(number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        # Whoever asks twice does not want to wait: what is kept already stays kept. (One ``timeout`` signals a process
        # and its group, which is no second wish.)
        if arrived and now - arrived[0][1] >= _SECOND_WISH_S:
            restore()
            signal.raise_signal(number)
        arrived.append((number, now))
        logger.info("%s: finishing this batch; once more to stop at once", signal.Signals(number).name)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, hold) for number in held}
    try:
        yield lambda: bool(arrived)
    finally:
        restore()
    for number, _ in arrived[:1]:
        logger.info(
            "%s: the batch is finished and kept; the same command goes on from here", signal.Signals(number).name
        )
        signal.raise_signal(number)
