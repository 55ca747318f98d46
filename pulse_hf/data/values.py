"""Values of a row, read strictly: an id is a string, a number is a number, anything else is a named error."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, TypeGuard

from pulse_hf.data.chunks import excerpt
from pulse_hf.data.rows import RowError

ISO = "iso"
TICKS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, ISO: 1_000_000}  # ISO 8601 text becomes microseconds
_EARLIEST_S, _LATEST_S = 788_918_400, 2_051_222_400  # 1995 and 2035: outside, the unit is most likely wrong
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_PER_YEAR = 31_556_952
_MAX_DIGITS = 400  # Python refuses to read integers of some thousand digits
_FINER = re.compile(r"[.,]\d{6}0*[1-9]")  # than microseconds
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?\Z", re.ASCII)
_NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*\Z", re.ASCII)


def are_ids(texts: Sequence[str]) -> bool:
    r"""Whether each text can be an id: something, and all of it visible.

    >>> are_ids(["a1", "b 2"]), are_ids(["a1", " "]), are_ids(["a1", "b\n"])
    (True, False, False)
    """
    return "".join(texts).isprintable() and all(texts) and not any(map(str.isspace, texts))


def is_time(value: float, unit: str) -> bool:
    """Whether a timestamp in ``unit`` lies between 1995 and 2035."""
    return _EARLIEST_S <= value / TICKS_PER_SECOND[unit] <= _LATEST_S


def read_id(row: Mapping[str, Any], name: str, where: str, repaired: Counter[str]) -> str:
    """An id exactly as it stands in the file; an integral JSON number becomes a string and is counted."""
    value = row.get(name)
    if isinstance(value, str):
        text = value
    elif _integral(value):
        text = str(int(value))
        repaired["number as id"] += 1
    elif value is None:
        raise RowError(where, name, value, f"an id (the row has {excerpt(sorted(row))})", f"missing {name}")
    else:
        raise RowError(where, name, value, "an id: a string or an integer", f"bad {name}")
    if not text or text.isspace():
        raise RowError(where, name, value, "an id that is not empty", f"missing {name}")
    if not text.isprintable():
        raise RowError(where, name, value, "an id without control or invisible characters", f"bad {name}")
    return text


def read_when(row: Mapping[str, Any], name: str, where: str, unit: str | None, repaired: Counter[str]) -> int:
    """A timestamp in ``unit`` between 1995 and 2035, or any integer if ``unit`` is ``None`` (an order only).

    With ``unit="iso"`` it is ISO 8601 text (or a Parquet time) and becomes microseconds; a date is its midnight, and a
    time that names no zone is read as UTC, and counted.

    >>> read_when({"at": "2020-09-13T14:26:40+02:00"}, "at", "log.csv:2", "iso", Counter())
    1600000000000000
    """
    raw = row.get(name)
    value = _microseconds(raw, repaired) if unit == ISO else _number(raw)
    if value is None or not _integral(value) or not -(2**63) <= value < 2**63:
        kind = f"integer timestamp in {unit!r}" if unit else "integer that orders the user's events"
        if unit == ISO:
            kind = "ISO 8601 date or time of at most six decimals, such as 2020-09-13T12:26:40Z"
        elif unit and isinstance(raw, str) and _DATE.match(raw):
            kind += "; timestamp_unit 'iso' reads dates and times as text"
        raise RowError(where, name, raw, f"an {kind}", f"bad {name}")
    if isinstance(value, float):
        repaired["float as integer"] += 1
    if unit and not is_time(value, unit):
        readings = ", ".join(
            f"in {key!r} it is the year {1970 + value / ticks / _SECONDS_PER_YEAR:.0f}"
            for key, ticks in TICKS_PER_SECOND.items()
            if (key == ISO) == (unit == ISO)
        )
        hint = "declare timestamp_unit, or declare the column as `order` if it only orders events"
        raise RowError(where, name, raw, f"a time from 1995 to 2035 ({readings}; {hint})", f"{name} outside 1995-2035")
    return int(value)


def read_rating(
    row: Mapping[str, Any], name: str, where: str, bounds: tuple[float, float], repaired: Counter[str]
) -> float | None:
    """A rating within ``bounds``; ``None`` (counted) where there is none."""
    raw = row.get(name)
    if raw is None or raw == "":
        repaired["no rating"] += 1
        return None
    value = _number(raw)
    if value is None or not bounds[0] <= value <= bounds[1]:
        raise RowError(where, name, raw, f"a number from {bounds[0]:g} to {bounds[1]:g}", f"bad {name}")
    return float(value)


def read_text(row: Mapping[str, Any], name: str | None, where: str, repaired: Counter[str] | None = None) -> str:
    """A text; a list of texts is joined; ``""`` where there is none or no column is declared.

    A number is kept as text; NaN, which is how some writers of Parquet say that there is none, is no text. Both are
    counted.

    >>> counts = Counter()
    >>> read_text({"title": 1984}, "title", "a:1", counts), read_text({"title": math.nan}, "title", "a:2", counts)
    ('1984', '')
    >>> sorted(counts)
    ['NaN or infinity as no text', 'number as text']
    """
    counts: Counter[str] = Counter() if repaired is None else repaired
    value = row.get(name) if name else None
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return " ".join(part for part in value if part)
    if isinstance(value, float) and not math.isfinite(value):
        counts["NaN or infinity as no text"] += 1
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        counts["number as text"] += 1
        return excerpt(value)
    raise RowError(where, str(name), value, "a text or a list of texts", f"bad {name}")


def _microseconds(value: Any, repaired: Counter[str]) -> int | None:
    """ISO 8601 text, or a date or time that Parquet gave, since 1970; ``None`` of finer ones, which would tie."""
    if getattr(value, "nanosecond", 0) or (isinstance(value, str) and _FINER.search(value)):
        return None
    if isinstance(value, str) and _DATE.match(value):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    elif isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        return None
    if value.tzinfo is None:
        repaired["time without a zone read as UTC"] += 1
        value = value.replace(tzinfo=UTC)
    since = value - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _number(value: Any) -> int | float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and len(value) <= _MAX_DIGITS and _NUMBER.match(value):
        value = int(value) if value.strip().lstrip("+-").isdigit() else float(value)
    return value if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)) else None


def _integral(value: object) -> TypeGuard[int | float]:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) < 2**53)
