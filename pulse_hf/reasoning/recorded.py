"""Rationales that somebody has written already: a file that says of some choices why they were made.

They may come from another run, from a large model elsewhere, or from people. They are read like any engine's texts,
and like them they may explain training targets only.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Series
from dataclasses import dataclass, field

from pulse_hf.artifacts import sha256_of_file
from pulse_hf.data.accounts import RowCount
from pulse_hf.data.item_text import clean_text
from pulse_hf.data.rows import Row, RowError, read_rows
from pulse_hf.data.sources import local_file
from pulse_hf.data.values import read_id, read_text
from pulse_hf.reasoning.generator import Finish, Generation, Sampling, Usage
from pulse_hf.reasoning.parsing import MARKER, MAX_WORDS, SECOND_MARKER
from pulse_hf.reasoning.prompts import Prompt
from pulse_hf.schema import Sequence

__all__ = ["RecordedGenerator", "recorded_identity", "recorded_rationales"]

ENGINE = "recorded"
COLUMNS = ("user_id", "item_id", "text")


@dataclass
class RecordedGenerator:
    """Answers with what is recorded of a decision; ``sampling`` and ``seed`` change nothing.

    Args:
        texts: Decision id to rationale.
        model_id: The file's name.
        revision: Its sha256.
        count: Where every row of the file went.
        usage: What was read so far; words count for tokens.

    Example:
        >>> from pulse_hf.reasoning.prompts import Evidence
        >>> prompt = Prompt("u#1", ({"role": "user", "content": "why?"},), Evidence(()))
        >>> recorded = RecordedGenerator({"u#1": "They like quiet things."})
        >>> recorded.generate([prompt], width=1, sampling=Sampling(), seed=0)[0][0].text
        'Reason: They like quiet things.'
    """

    texts: Mapping[str, str]
    model_id: str = ENGINE
    revision: str = ""
    count: RowCount = field(default_factory=RowCount)
    usage: Usage = field(default_factory=Usage)
    engine: str = ENGINE

    def generate(
        self, prompts: Series[Prompt], *, width: int, sampling: Sampling, seed: int
    ) -> list[list[Generation]]:
        """Look every prompt's text up; see :class:`pulse_hf.reasoning.generator.Generator`."""
        started = time.perf_counter()
        results = [[self._told(prompt.key)] * width for prompt in prompts]
        self.usage.generated_tokens += sum(reply.num_tokens for replies in results for reply in replies)
        self.usage.seconds += time.perf_counter() - started
        return results

    def _told(self, key: str) -> Generation:
        text = MARKER.sub("", self.texts.get(key, ""), count=1)
        # Here all of it was written on purpose: another "Reason:" inside is no second reason.
        words = SECOND_MARKER.sub(lambda found: found[0].lower(), text).split()
        # What is longer than a rationale may be ends with its last whole sentence, as a model's text does.
        finish: Finish = "length" if len(words) > MAX_WORDS else "stop"
        return Generation(f"Reason: {' '.join(words[:MAX_WORDS])}", num_tokens=len(words), finish=finish)


def _read(row: Row | RowError, where: str, repaired: Counter[str]) -> tuple[str, str, str]:
    if isinstance(row, RowError):
        raise row
    user_id, item_id = (read_id(row, name, where, repaired) for name in ("user_id", "item_id"))
    return user_id, item_id, clean_text(read_text(row, "text", where, repaired), repaired)


def recorded_identity(file: str) -> dict[str, str]:
    """What a stage records and compares of the file in place of a model.

    Raises:
        ValueError: There is no such file.
    """
    path = local_file(file)
    return {"id": path.name, "revision": "recorded", "weights_sha256": sha256_of_file(path)}


def _places(sequences: Iterable[Sequence]) -> tuple[dict[tuple[str, str], str], set[tuple[str, str]]]:
    """Decision ids of who chose what in training, and such choices that are a target, too."""
    places: dict[tuple[str, str], str] = {}
    unclear = set()
    for sequence in sequences:
        later = set(sequence.item_ids[sequence.num_train :])
        for position in range(1, sequence.num_train):
            choice = (sequence.user_id, sequence.item_ids[position])
            if choice[1] in later:
                unclear.add(choice)
            else:
                places.setdefault(choice, f"{sequence.user_id}#{position}")
    return places, unclear


def recorded_rationales(file: str, sequences: Iterable[Sequence]) -> RecordedGenerator:
    """Read a file of rationales.

    Args:
        file: JSON lines, CSV, TSV (each also gzip) or Parquet with the columns ``user_id``, ``item_id`` (whose choice
            of what) and ``text``; a path or ``hf://datasets/OWNER/REPO[@REVISION]/FILE``.
        sequences: The users; of several choices of one item the first is meant. Of an item that is a target, too, no
            row is taken: it may have been written of that.

    Returns:
        The engine. Rows of other choices than training targets with a history are counted and left out, so is every
        further row of a choice.

    Raises:
        ValueError: A row or the file cannot be read, or no row is of a training target.
    """
    path, count = local_file(file), RowCount()
    places, unclear = _places(sequences)
    texts: dict[str, str] = {}
    for where, row in read_rows(path, list(COLUMNS), count.repaired, wanted=COLUMNS):
        count.read += 1
        try:
            user_id, item_id, text = _read(row, where, count.repaired)
        except RowError as error:
            raise ValueError(f"{error.told} Correct the row, or take it out.") from error
        choice = user_id, item_id
        if choice in unclear:
            count.dropped["chosen again as a target: it may tell of that"] += 1
        elif choice not in places:
            count.dropped["no training target with a history"] += 1
        elif places[choice] in texts:
            count.dropped["another row for the same choice"] += 1
        elif not text:
            count.dropped["no text"] += 1
        else:
            texts[places[choice]] = text
            count.kept += 1
    if not texts:
        raise ValueError(
            f"{path}: none of its {count.read} rows is of a training target; expected columns {', '.join(COLUMNS)} "
            "with the ids that the interactions have."
        )
    return RecordedGenerator(texts, path.name, sha256_of_file(path), count)
