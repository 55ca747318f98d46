"""Where every row of a file went: nothing is lost, and nothing changed, without being counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pulse_hf.data.chunks import excerpt
from pulse_hf.data.rows import RowError

logger = logging.getLogger(__name__)

# The repair that tells of damage. The others (markup, entities, numbers as ids) are what sound files hold, too.
DAMAGE = "broken characters replaced"


@dataclass
class RowCount:
    """The account of one file: ``read == kept + sum(dropped)``.

    Args:
        read: Rows in the file (blank lines and a header are not rows).
        kept: Rows that are in the result.
        dropped: Reason to number of rows.
        repaired: Kind of repair to number of values; a repaired row is kept.
        damaged: Rows that were kept with damage repaired.
        unreadable: Those of the dropped rows that could not be read, by reason.
        unused: Columns that nothing reads, of the first row that has such. Told, not reported: what is reported does
            not depend on the order of the rows.
    """

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    damaged: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    unused: list[str] = field(default_factory=list)
    _seen: int = 0  # damage of the rows before

    def refuse(self, error: RowError, *, drop: bool) -> None:
        """Count an unreadable row as dropped, or raise its error.

        Raises:
            RowError: ``drop`` is false.
        """
        if not drop:
            raise error
        self.dropped[error.reason] += 1
        self.unreadable[error.reason] += 1
        self._seen = self.repaired[DAMAGE]

    def end_row(self) -> None:
        """A row was read and is kept: however much of it was broken, it is one damaged row."""
        if self.repaired[DAMAGE] > self._seen:
            self.damaged += 1
            self._seen = self.repaired[DAMAGE]

    def move(self, reason: str, rows: int) -> None:
        """Count rows as dropped that were kept until now."""
        if rows:
            self.kept -= rows
            self.dropped[reason] += rows

    def note_unused(self, path: Path, names: Iterable[str]) -> None:
        """Tell once which columns are not read: a column that was meant to be may be spelled differently."""
        if not self.unused:
            self.unused = sorted(names)
            if self.unused:
                logger.warning("%s: columns that are not read: %s", path, ", ".join(map(excerpt, self.unused)))

    def check_damage(self, path: str, most: float) -> None:
        """Refuse a file of which more is damaged than a few rows.

        Args:
            path: The file, for the message.
            most: Share of its rows that may be unreadable (and dropped) or damaged (and mended), in [0, 1].

        Raises:
            ValueError: It is more; what and how many are named.
        """
        found = self.unreadable + Counter({DAMAGE: self.damaged})
        if found.total() > most * self.read:
            named = ", ".join(f"{kind} {rows}" for kind, rows in found.most_common())
            raise ValueError(
                f"{path}: {found.total()} of {self.read} rows are damaged ({named}), expected at most "
                f"{most:.2%}. Correct the file, or raise max_repair_rate to go on without what is damaged."
            )

    def as_dict(self) -> dict[str, Any]:
        """The account as it stands in a report."""
        assert self.read == self.kept + self.dropped.total(), "a row is unaccounted for"
        return {
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "repaired": dict(sorted(self.repaired.items())),
        }
