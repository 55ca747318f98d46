"""Where every row of a file went: nothing is lost, and nothing changed, without being counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pulse_hf.data.rows import RowError


@dataclass
class RowCount:
    """The account of one file: ``read == kept + sum(dropped)``.

    Args:
        read: Rows in the file (blank lines and a header are not rows).
        kept: Rows that are in the result.
        dropped: Reason to number of rows.
        repaired: Kind of repair to number of values; a repaired row is kept.
    """

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)

    def refuse(self, error: RowError, *, drop: bool) -> None:
        """Count an unreadable row as dropped, or raise its error.

        Raises:
            RowError: ``drop`` is false.
        """
        if not drop:
            raise error
        self.dropped[error.reason] += 1

    def move(self, reason: str, rows: int) -> None:
        """Count rows as dropped that were kept until now."""
        if rows:
            self.kept -= rows
            self.dropped[reason] += rows

    def as_dict(self) -> dict[str, Any]:
        """The account as it stands in a report."""
        assert self.read == self.kept + self.dropped.total(), "a row is unaccounted for"
        return {
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "repaired": dict(sorted(self.repaired.items())),
        }
