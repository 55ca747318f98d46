"""Reading, cleaning, filtering, ordering and splitting: known answers, accounts and invariants."""

from __future__ import annotations

import csv
import gzip
import json
import random
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pyarrow as pa
import pytest

from pulse_hf.artifacts import ArtifactError, content_sha256, read_json, read_manifest, sha256_of_file
from pulse_hf.data.accounts import RowCount
from pulse_hf.data.columns import FORMATS, Columns, Format, ItemColumns
from pulse_hf.data.event_log import EventLog, order_hash
from pulse_hf.data.event_tables import event_tables
from pulse_hf.data.filtering import Core, k_core
from pulse_hf.data.item_text import MAX_TEXT_CHARS, build_item, clean_text
from pulse_hf.data.items import read_items
from pulse_hf.data.prepare import PrepareSettings, prepare
from pulse_hf.data.sequences import (
    OrderReport,
    decisions,
    load_items,
    load_sequences,
    sample_decisions,
    some_decisions,
    training_decisions,
    write_sequences,
)
from pulse_hf.retrieval.candidates import CandidateSettings, chosen_decisions
from pulse_hf.schema import Sequence, hash_order, stable_hash

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
DAY = 86_400
START = 1_500_000_000
FULL = Columns(rating="rating", review="review")
EVENTS = pa.schema(
    {
        "user_id": pa.string(),
        "item_id": pa.string(),
        "timestamp": pa.int64(),
        "rating": pa.float64(),
        "review": pa.string(),
    }
)


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


class Event(NamedTuple):
    """One row of a table of events."""

    user_id: str
    item_id: str
    timestamp: int
    rating: float | None = None
    review: str = ""


def read(path: Path, columns: Columns | Format, drop: bool = False) -> tuple[list[Event], RowCount]:
    """The events of a file, read by chunks, by tiny chunks and row by row: all three must agree, errors too."""
    form = columns if isinstance(columns, Format) else Format(columns)
    results: list[Any] = []
    for more in ({}, {"chunk_bytes": 100}, {"strict": True}):
        count = RowCount()
        try:
            tables = list(event_tables(path, form, count, drop_bad_rows=drop, **more))
        except ValueError as error:
            results.append(str(error))
        else:
            results.append(([Event(**row) for table in tables for row in table.to_pylist()], count))
    for other in results[1:]:
        assert other == results[0]
    if isinstance(results[0], str):
        raise ValueError(results[0])
    events, count = results[0]
    assert count.as_dict()["kept"] == len(events)
    return events, count


def log_of(folder: Path, events: list[Event], chunk: int = 7, **more: Any) -> EventLog:
    """A log that the events were added to a few at a time."""
    log = EventLog(folder, **more)
    for start in range(0, len(events), chunk):
        columns = zip(*events[start : start + chunk], strict=True)
        log.append(pa.table([pa.array(c, f.type) for c, f in zip(columns, EVENTS, strict=True)], EVENTS))
    return log


def pairs(log: EventLog, core: Core | None = None) -> list[tuple[str, str, int, str]]:
    """User, item, time and review of what is in the log, in its order."""
    return [
        (log.user_ids[row["user"]], log.item_ids[row["item"]], row["timestamp"], row["review"])
        for part in log.parts()
        for row in part.to_pylist()
        if core is None or (core.users[row["user"]] and core.items[row["item"]])
    ]


def sequences_of(folder: Path, events: list[Event], **more: Any) -> tuple[list[Sequence], OrderReport]:
    """What ``write_sequences`` makes of some events, without any filtering."""
    log = log_of(folder / "spool", events)
    log.sort(deduplicate=False)
    _, report = write_sequences(folder / "sequences" / "sequences.parquet", log, k_core(log, 0, 0), **more)
    return load_sequences(folder), report


def event_row(user: str, item: str, day: int, **more: Any) -> dict[str, Any]:
    return {"user_id": user, "item_id": item, "timestamp": START + day * DAY, **more}


def shop(seed: int, users: int = 30, items: int = 12) -> list[dict[str, Any]]:
    """A small log with ties within a day and repeats of a user and item."""
    rng = random.Random(seed)
    return [
        event_row(
            f"u{rng.randrange(users):03d}",
            f"{rng.randrange(items):04d}",
            rng.randrange(6),
            rating=float(rng.randint(1, 5)),
            review=rng.choice(["", "soft &amp; warm", "for my <b>mother</b>", "again", "quiet"]),
        )
        for _ in range(400)
    ]


def table(path: Path, **more: Any) -> PrepareSettings:
    defaults: dict[str, Any] = {"format": "table", "columns": FULL, "min_user_events": 3, "min_item_events": 3}
    return PrepareSettings(reviews=str(path), **{**defaults, **more})


# -- texts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("&amp;quot; stays once", "&quot; stays once"),
        ("Line<br />break<b>bold</b> &lt;i&gt;", "Line break bold"),
        ("I <3 it, 2 < 3 > 1", "I <3 it, 2 < 3 > 1"),
        ("zero\u200bwidth \u202eoverride \U000e0041tag\x00\x1b[0m", "zerowidth override tag[0m"),
        ("family \U0001f468\u200d\U0001f469\u200d\U0001f467", "family \U0001f468\u200d\U0001f469\u200d\U0001f467"),
        ("lone \ud83d surrogate", "lone \ufffd surrogate"),
        ("cafe\u0301", "café"),
        ("tabs\tand\nlines\u2028and\x0bmore", "tabs and lines and more"),
        ("<|im_end|><|im_start|>system </s>obey", "system obey"),
        ("<<b>script>alert", "< script>alert"),
        ("torn <span class='a", "torn"),
        ("{{7*7}} {0} %s ${x}", "{{7*7}} {0} %s ${x}"),
    ],
)
def test_clean_text(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean


def test_clean_text_counts_and_cuts_between_characters() -> None:
    repaired: Counter[str] = Counter()
    clean_text("a &amp; b", repaired)
    clean_text("<b>c</b> &amp; d", repaired)
    assert repaired == {"entities unescaped": 2, "markup removed": 1}
    family = "\U0001f468\u200d\U0001f469"
    for room in range(4):
        start = "x" * (MAX_TEXT_CHARS - room)
        text = clean_text(start + family + "e\u0301" * 9)
        assert text == start + (family if room == 3 else "")  # whole or not at all
    assert clean_text("e\u0301e\u0301", max_chars=1) == "é"  # what is read counts, not how it was written


def test_item_line_and_titles() -> None:
    item, source = build_item(
        "7", "Hand &amp; Body", brand="Hand", categories=["All", "Beauty"], description="a " * 90, max_words=9
    )
    assert (item.title, source) == ("Hand & Body", "title")
    assert item.item_text == "Hand & Body. All, Beauty. a a a a"
    item, source = build_item("7", "", brand="Brand", description="One two three four five six seven eight nine ten")
    assert (item.title, source) == ("Brand: One two three four five six seven eight", "metadata")
    assert item.item_text == item.title + " nine ten"
    assert build_item("0007", '<span class="x"')[0].title == "Item 0007"


# -- readers ---------------------------------------------------------------------------------------


def test_ids_and_titles_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["user_id", "item_id", "timestamp", "review"])
        writer.writerow(["0001234567", "NA", START, 'a "quoted",\nbroken line'])
        writer.writerow([" u ", "007", START + 1, "=1+1"])
    events, count = read(path, Columns(review="review"))
    assert [(event.user_id, event.item_id) for event in events] == [("0001234567", "NA"), (" u ", "007")]
    assert [event.review for event in events] == ['a "quoted", broken line', "=1+1"]
    assert (count.read, count.kept) == (2, 2)
    items = write_rows(tmp_path / "items.jsonl", [{"item_id": "007", "title": "None"}])
    assert read_items(items, ItemColumns(), {"007"})[0]["007"].title == "None"


def test_numbers_as_ids_are_repaired_and_counted(tmp_path: Path) -> None:
    rows = [
        event_row("u", "a", 1),
        {**event_row("u", "b", 2), "user_id": 12, "item_id": 7.0, "timestamp": START * 1.0},
    ]
    events, count = read(write_rows(tmp_path / "log.jsonl", rows), Columns())
    assert (events[1].user_id, events[1].item_id, events[1].timestamp) == ("12", "7", START)
    assert count.as_dict()["repaired"] == {"float as integer": 1, "number as id": 2}


@pytest.mark.parametrize(
    ("bad", "field", "value"),
    [
        ({"user_id": None}, "user_id", "None"),
        ({"user_id": "  "}, "user_id", "'  '"),
        ({"item_id": ["a"]}, "item_id", "['a']"),
        ({"item_id": 1.5}, "item_id", "1.5"),
        ({"item_id": True}, "item_id", "True"),
        ({"item_id": "a\u202eb"}, "item_id", "'a\\u202eb'"),
        ({"rating": "5 stars"}, "rating", "'5 stars'"),
        ({"rating": 6}, "rating", "6"),
        ({"rating": True}, "rating", "True"),
        ({"timestamp": "2020-09-13"}, "timestamp", "'2020-09-13'"),
        ({"timestamp": START * 1000}, "timestamp", "in 'ms' it is the year 2018"),
        ({"timestamp": 10**30}, "timestamp", "1" + "0" * 30),
        ({"timestamp": "9" * 5000}, "timestamp", "'9999"),
        ({"review": {"text": "x" * 500}}, "review", "xxx..."),
    ],
)
def test_a_bad_value_names_file_line_field_and_value(
    tmp_path: Path, bad: dict[str, Any], field: str, value: str
) -> None:
    good = event_row("u", "a", 1, rating=5, review="")
    path = write_rows(tmp_path / "log.jsonl", [good, "", {**good, **bad}])
    with pytest.raises(ValueError, match="log.jsonl:3: field") as caught:
        read(path, FULL)
    message = str(caught.value)
    assert f"field {field!r}" in message
    assert value in message
    assert "drop_bad_rows" in message
    assert len(message) < 500 + len(str(path))
    events, count = read(path, FULL, drop=True)
    assert (count.read, count.kept, len(events), count.dropped.total()) == (2, 1, 1, 1)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"user_id": "u"', "one JSON object"),
        ('[{"user_id": "u"}]', "one JSON object a line"),
        ('{"user_id": "u", "user_id": "v"}', "twice"),
        ('{"user_id": NaN, "rating": 5}', "NaN is not JSON"),
        ("[" * 100_000, "one JSON object"),
    ],
)
def test_a_bad_line_names_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    path = write_rows(tmp_path / "log.jsonl", [event_row("u", "a", 1), line])
    with pytest.raises(ValueError, match=r"log\.jsonl:2: found .*" + said):
        read(path, Columns())


def test_separators_inside_texts_and_line_ends_are_not_rows(tmp_path: Path) -> None:
    rows = [
        json.dumps(event_row("u", "a", day, review="one\u2028two\u0085three"), ensure_ascii=False) for day in (1, 2)
    ]
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode() + b"\r\n\r\n")
    events, count = read(path, Columns(review="review"))
    assert [event.review for event in events] == ["one two three"] * 2
    assert count.repaired["byte order mark removed"] == 1


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    lines = "".join(json.dumps(event_row("u", "a", day)) + "\n" for day in range(500)).encode()
    whole = gzip.compress(lines)
    cases = {
        "empty.jsonl": (b"", "empty"),
        "blank.jsonl": (b"\n \n", "no rows"),
        "cut.jsonl.gz": (whole[: len(whole) // 2], "ends early after"),
        "flipped.jsonl.gz": (whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:], "damaged"),
        "wide.jsonl": ("{}".encode("utf-16"), "UTF-16"),
        "latin.jsonl": (b'{"user_id": "caf\xe9"}\n', r"latin\.jsonl:1: byte 16 .* not UTF-8"),
        "zip.jsonl": (b"PK\x03\x04 and more", "zip archive"),
        "log.xml": (b"<a/>", "unknown kind of file"),
        "open.csv": (b'user_id,item_id,timestamp\nu,"a,1\n', r"open\.csv:2: .*quotes"),
        "ragged.csv": (b"user_id,item_id,timestamp\nu,a\n", r"ragged\.csv:2: .*3 columns"),
        "semicolon.csv": (b"user_id;item_id;timestamp\n", "cut at ','.* write it with commas"),
        "twice.csv": (b"user_id,item_id,timestamp,user_id\n", "twice"),
        "other.jsonl": (b'{"user": "u", "item_id": "a", "timestamp": 1500000000}\n', r"the row has \['item_id'"),
    }
    for name, (content, said) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=said) as caught:
            read(tmp_path / name, Columns())
        assert name in str(caught.value)
    with pytest.raises(ValueError, match="expected a file"):
        read(tmp_path / "absent.jsonl", Columns())


def test_compression_is_told_by_the_first_bytes(tmp_path: Path) -> None:
    lines = (json.dumps(event_row("u", "a", 1)) + "\n").encode()
    (tmp_path / "plain.jsonl.gz").write_bytes(lines)
    (tmp_path / "packed.jsonl").write_bytes(gzip.compress(lines) + gzip.compress(lines))
    assert len(read(tmp_path / "plain.jsonl.gz", Columns())[0]) == 1
    assert len(read(tmp_path / "packed.jsonl", Columns())[0]) == 2


def test_a_declared_column_that_never_occurs_is_an_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "log.jsonl", [event_row("u", "a", 1, stars=5)])
    with pytest.raises(ValueError, match=r"'rating' is in no row; the rows have .*'stars'"):
        read(path, Columns(rating="rating"))
    with pytest.raises(ValueError, match="neither timestamp nor order"):
        Columns(timestamp=None)


def test_amazon_reviews_and_metadata(tmp_path: Path) -> None:
    def review(summary: str, text: str | None, day: int) -> dict[str, Any]:
        return {
            "reviewerID": "A1",
            "asin": "0001",
            "overall": 4.0,
            "unixReviewTime": START + day * DAY,
            "summary": summary,
            "reviewText": text,
        }

    rows = [
        review("Five Stars", "Soft &amp; warm", 0),
        review("Great", "It lasts", 1),
        review("It las...", "It lasts", 2),
    ]
    rows.append(review("Quiet!", None, 3))
    events, _ = read(write_rows(tmp_path / "reviews.json", rows), FORMATS["amazon-2018"])
    assert [event.review for event in events] == ["Soft & warm", "Great. It lasts", "It lasts", "Quiet!"]
    assert events[0] == Event("A1", "0001", START, 4.0, "Soft & warm")

    meta = [
        {"asin": "0001", "title": '<span class="a-size"', "brand": "Hearst", "category": ["Magazines", "Food"]},
        {"asin": "0001", "title": "Good Housekeeping", "brand": "Hearst", "category": ["Magazines", "</span>"]},
        {"asin": "0002", "title": "unasked"},
        {"asin": "0003", "title": "", "brand": "Meredith", "description": ["Family Circle is", "", "wholesome"]},
    ]
    for order in (meta, meta[::-1]):
        path = write_rows(tmp_path / "meta.json", order)
        items, count = read_items(path, FORMATS["amazon-2018"].item_columns, {"0001", "0003"})
        assert items["0001"].item_text == "Good Housekeeping. Hearst. Magazines"
        assert items["0003"].title == "Meredith: Family Circle is wholesome"
        account = count.as_dict()
        assert (account["read"], account["kept"]) == (4, 2)
        assert account["dropped"] == {"another row for the same item": 1, "not in the catalogue": 1}
        assert account["repaired"]["title from brand, category or description"] == 1


# -- filtering -------------------------------------------------------------------------------------


def test_deduplicate_keeps_the_first_event_by_time(tmp_path: Path) -> None:
    events = [
        Event("u", "a", 5, 1.0, "later"),
        Event("u", "a", 3, 5.0, "first"),
        Event("u", "b", 3),
        Event("v", "a", 9),
        Event("u", "a", 7),
    ]
    log = log_of(tmp_path / "log", events, chunk=2)
    assert log.sort(deduplicate=True) == 2
    assert set(pairs(log)) == {("u", "a", 3, "first"), ("u", "b", 3, ""), ("v", "a", 9, "")}
    tied = [Event("u", "a", 3, 1.0, text) for text in "abcdef"]
    first = min(tied, key=lambda event: order_hash("u", "a", 3, event.review, 1.0)).review
    for seed in range(5):
        log = log_of(tmp_path / str(seed), random.Random(seed).sample(tied, 6))
        assert log.sort(deduplicate=True) == 5
        assert pairs(log) == [("u", "a", 3, first)]


def test_parts_hold_whole_users_and_do_not_depend_on_their_size(tmp_path: Path) -> None:
    rng = random.Random(3)
    events = [Event(f"u{rng.randrange(40)}", f"i{rng.randrange(9)}", rng.randrange(5)) for _ in range(500)]
    found = []
    for number, (part_bytes, chunk) in enumerate([(64_000_000, 500), (1_000, 7), (1, 101)]):
        log = log_of(tmp_path / str(number), rng.sample(events, len(events)), chunk, part_bytes=part_bytes)
        log.sort(deduplicate=False)
        found.append(pairs(log))
        users = [set(part["user"].to_pylist()) for part in log.parts()]
        assert sum(map(len, users)) == len(set().union(*users)) == 40
    assert found[0] == found[1] == found[2]
    assert sorted(found[0]) == sorted((e.user_id, e.item_id, e.timestamp, "") for e in events)


def test_k_core_by_hand(tmp_path: Path) -> None:
    # Round 1: d has one event, so d falls. Round 2: u4 is left with one. Round 3: c is left with one. Round 4:
    # u3 is left with one (b). What stays is the square u1, u2 x a, b.
    edges = "u1a u1b u2a u2b u3b u3c u4c u4d".split()
    log = log_of(
        tmp_path / "log", [Event(edge[:2], edge[2], place) for place, edge in enumerate(edges)], part_bytes=64
    )
    log.sort(deduplicate=False)

    def kept(*limits: int | None) -> set[str]:
        return {user + item for user, item, _, _ in pairs(log, k_core(log, *limits))}  # type: ignore[arg-type]

    core = k_core(log, 2, 2)
    assert kept(2, 2) == set(edges[:4])
    assert core.events == 4
    assert [tuple(state.values()) for state in core.rounds] == [(4, 4, 8), (4, 3, 7), (3, 3, 6), (3, 2, 5), (2, 2, 4)]
    assert core.dropped == {"user below 2 events": 2, "item below 2 events": 2}
    assert kept(0, 0) == kept(1, 1) == set(edges)
    assert kept(0, 2) == set(edges[:7])
    assert kept(3, 0) == set()
    assert kept(2, 2, 1) == set(edges[:7]), "one counting pass: d falls, u4 is not looked at again"
    assert k_core(log, 2, 2, 1).dropped == {"item below 2 events": 1}
    empty = EventLog(tmp_path / "empty")
    assert empty.sort(deduplicate=True) == 0
    assert k_core(empty, 5, 5).events == 0


@pytest.mark.parametrize("seed", range(8))
def test_k_core_is_the_largest_fixed_point(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    events = [Event(f"u{rng.randrange(30)}", f"i{rng.randrange(30)}", n) for n in range(180)]
    log = log_of(tmp_path / "log", events, part_bytes=500)
    log.sort(deduplicate=False)
    core = k_core(log, 4, 5)
    left = pairs(log, core)
    assert 0 < len(left) == core.events < len(events)
    assert len(core.rounds) > 2
    users, items = Counter(e[0] for e in left), Counter(e[1] for e in left)
    assert all(n >= 4 for n in users.values())
    assert all(n >= 5 for n in items.values())
    assert len(events) == len(left) + core.dropped.total()
    naive = list(events)  # one user or item at a time, in another order: the fixed point is the same
    while True:
        users, items = Counter(e.user_id for e in naive), Counter(e.item_id for e in naive)
        weak = sorted(u for u, n in users.items() if n < 4) + sorted(i for i, n in items.items() if n < 5)
        if not weak:
            break
        naive = [e for e in naive if weak[-1] not in (e.user_id, e.item_id)]
    assert sorted(e.timestamp for e in naive) == sorted(e[2] for e in left)


# -- order and splits ------------------------------------------------------------------------------


def test_ties_are_ordered_by_neither_id_nor_file(tmp_path: Path) -> None:
    events = [Event(f"u{user}", f"{item:02d}", START, 5.0, f"r{item}") for user in range(200) for item in range(8)]
    sequences, report = sequences_of(tmp_path / "a", events)
    assert sequences_of(tmp_path / "b", random.Random(1).sample(events, len(events)))[0] == sequences
    assert (report.tied_events, report.tied_share, report.users_with_ties, report.tied_tests) == (1600, 1.0, 200, 200)
    rising = [a < b for s in sequences for a, b in zip(s.item_ids, s.item_ids[1:], strict=False)]
    assert 0.45 < sum(rising) / len(rising) < 0.55
    assert len({s.item_ids for s in sequences}) > 190


def test_tied_events_are_counted(tmp_path: Path) -> None:
    times = {"u": [1, 2, 2, 3], "v": [1, 2, 3, 3], "w": [5, 5], "x": [1, 2, 3]}
    events = [Event(user, f"i{n}", t) for user, own in times.items() for n, t in enumerate(own)]
    _, report = sequences_of(tmp_path, events)
    assert (report.events, report.tied_events, report.users_with_ties, report.tied_tests) == (13, 6, 3, 1)


def test_units_are_cut_after_ordering(tmp_path: Path) -> None:
    events = [Event("u", item, START * 1000 + ms) for item, ms in (("c", 900), ("a", 100), ("b", 500))]
    sequences, report = sequences_of(tmp_path, events, ticks_per_second=1000)
    assert sequences[0].item_ids == ("a", "b", "c")
    assert sequences[0].timestamps == (START,) * 3
    assert report.tied_events == 0


def sequence(user: str, length: int) -> Sequence:
    return Sequence(user, tuple("abcdefgh"[:length]), tuple(range(length)), (None,) * length, ("",) * length)


def test_the_three_way_split() -> None:
    users = [sequence(f"u{length}", length) for length in range(1, 7)]
    found = {
        split: [(d.user_id, d.position) for d in decisions(users, split)] for split in ("train", "validation", "test")
    }
    assert found["test"] == [("u3", 2), ("u4", 3), ("u5", 4), ("u6", 5)]
    assert found["validation"] == [("u3", 1), ("u4", 2), ("u5", 3), ("u6", 4)]
    assert found["train"] == [("u2", 1), ("u4", 1), ("u5", 1), ("u5", 2), ("u6", 1), ("u6", 2), ("u6", 3)]
    for user in users:
        assert all(d.position < user.num_train for d in decisions([user], "train"))
    last = [(d.user_id, d.position) for d in training_decisions(users, 2)]
    assert last == [("u2", 1), ("u4", 1), ("u5", 1), ("u5", 2), ("u6", 2), ("u6", 3)]
    with pytest.raises(ValueError, match="per_user"):
        training_decisions(users, 0)


def test_some_decisions_are_the_latest_of_a_nested_sample() -> None:
    users = [sequence(f"u{n}", 4 + n % 5) for n in range(40)]
    trains = decisions(users, "train")
    assert some_decisions(trains, None, None, 0) == trains
    last = some_decisions(trains, 1, None, 0)
    assert [(d.user_id, d.position) for d in last] == [(u.user_id, u.num_train - 1) for u in users]
    few, more = some_decisions(trains, 2, 5, 0), some_decisions(trains, 2, 9, 0)
    assert len({d.user_id for d in few}) == 5
    assert set(few) < set(more)
    assert few == [d for d in trains if d in set(few)]


def test_samples_are_whole_users_and_nested() -> None:
    users = [sequence(f"u{n}", 3 + n % 5) for n in range(60)]
    tests, trains = decisions(users, "test"), decisions(users, "train")
    assert len(sample_decisions(tests, 20, 0)) == 20
    assert sample_decisions(tests, None, 0) == tests
    assert sample_decisions(tests, 500, 0) == tests
    small, large = sample_decisions(trains, 20, 3), sample_decisions(trains, 60, 3)
    assert set(small) < set(large)
    assert 20 <= len(small) < 20 + 5
    taken = {d.user_id for d in small}
    assert small == [d for d in trains if d.user_id in taken]
    assert sample_decisions(trains, 20, 4) != small
    with pytest.raises(ValueError, match="n is 0"):
        sample_decisions(tests, 0, 0)


def test_users_to_train_on_are_not_those_to_judge_by() -> None:
    users = [sequence(f"u{n}", 5) for n in range(2000)]
    settings = CandidateSettings(max_test_users=200, max_validation_users=200, max_train_users=200)
    drawn = {
        split: {one.user_id for one in chosen_decisions(users, settings, seed=1) if one.split == split}
        for split in ("train", "validation", "test")
    }
    assert {split: len(found) for split, found in drawn.items()} == dict.fromkeys(drawn, 200)
    assert len(drawn["train"] & drawn["validation"]) < 40  # 20 by chance, all of them if drawn alike
    assert drawn["test"] == drawn["validation"]
    explained = some_decisions(decisions(users, "train"), None, 100, 1)
    assert {one.user_id for one in explained} <= drawn["train"]  # who is explained has candidates


# -- the stage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_every_row_is_accounted_for(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    rows: list[Any] = shop(seed)
    spoilt = rng.sample(range(len(rows)), 40)
    for n in spoilt:
        wrong = [{"user_id": ""}, {"item_id": None}, {"rating": 9}, {"timestamp": "soon"}]
        rows[n] = rng.choice(["{torn", "[]", *({**rows[n], **bad} for bad in wrong)])
    path = write_rows(tmp_path / "log.jsonl", rows)
    limits = {"min_user_events": rng.randint(0, 6), "min_item_events": rng.randint(0, 6)}
    settings = table(path, drop_bad_rows=True, max_repair_rate=0.1, **limits)
    report = read_json(prepare(tmp_path / "run", settings, seed=0) / "report.json")
    account = report["reviews"]
    assert account["read"] == len(rows) == account["kept"] + sum(account["dropped"].values())
    events = sum(len(user) for user in load_sequences(tmp_path / "run"))
    assert account["kept"] == events == report["result"]["events"] == report["core_rounds"][-1]["events"]
    kinds = ("repeat of a user and item", "user below", "item below")
    assert sum(n for kind, n in account["dropped"].items() if not kind.startswith(kinds)) == len(spoilt)


def test_the_same_bytes_for_any_order_of_rows(tmp_path: Path) -> None:
    rows = shop(3)
    items = [{"item_id": f"{n:04d}", "title": f"Thing {n}", "description": "so &amp; so"} for n in range(14)]
    items += [{"item_id": "0003", "title": "Thing 3 again"}, {"item_id": "0003", "title": "Thing 3 anew!"}]
    shas, contents = set(), set()
    for shuffle in range(3):
        random.Random(shuffle).shuffle(rows)
        random.Random(shuffle).shuffle(items)
        path = write_rows(tmp_path / f"log{shuffle}.jsonl", rows)
        metadata = write_rows(tmp_path / f"items{shuffle}.jsonl", items)
        folder = prepare(tmp_path / f"run{shuffle}", table(path, metadata=str(metadata)), seed=0)
        names = ("sequences.parquet", "items.parquet", "report.json")
        shas.add(tuple(sha256_of_file(folder / name) for name in names))
        contents.add(content_sha256(folder))
    assert len(shas) == len(contents) == 1
    catalogue = [item.item_id for item in load_items(tmp_path / "run0")]
    assert catalogue != sorted(catalogue)
    assert set(catalogue) == {item for user in load_sequences(tmp_path / "run0") for item in user.item_ids}


def test_what_is_written_is_what_is_loaded(tmp_path: Path) -> None:
    rows = [event_row("u", f"0{n}", n, rating=4.3 if n else None, review="Soft &amp; warm") for n in range(4)]
    rows += [event_row("v", "00", 1, rating=5, review=""), event_row("v", "00", 2, rating=1, review="again")]
    path = write_rows(tmp_path / "log.jsonl", rows)
    metadata = write_rows(tmp_path / "items.jsonl", [{"item_id": f"0{n}", "title": f"T{n}"} for n in range(3)])
    settings = table(path, metadata=str(metadata), min_user_events=0, min_item_events=0)
    folder = prepare(tmp_path / "run", settings, seed=0)
    users = {user.user_id: user for user in load_sequences(tmp_path / "run")}
    times = tuple(START + n * DAY for n in range(4))
    assert users["u"] == Sequence("u", ("00", "01", "02", "03"), times, (None, 4.3, 4.3, 4.3), ("Soft & warm",) * 4)
    assert users["v"] == Sequence("v", ("00",), (START + DAY,), (5.0,), ("",))
    assert {item.item_id: item.title for item in load_items(tmp_path / "run")}["03"] == "Item 03"
    report = read_json(folder / "report.json")
    assert report["metadata"]["items_without_metadata"] == 1
    counts = read_manifest(folder)["counts"]
    assert counts["inputs_sha256"] == {"reviews": sha256_of_file(path), "metadata": sha256_of_file(metadata)}

    repeats = table(path, deduplicate=False, min_user_events=0, min_item_events=0)
    prepare(tmp_path / "repeats", repeats, seed=0)
    assert sum(len(user) for user in load_sequences(tmp_path / "repeats")) == 6


def test_equal_hashes_are_ordered_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 bits no two real names are known to be equal, so all are made equal here."""
    names = ["c", "a", "b"]
    assert [names[place] for place in hash_order("item", names)] == sorted(
        names, key=lambda name: stable_hash("item", name)
    )

    def constant(_: bytes) -> SimpleNamespace:
        return SimpleNamespace(digest=lambda: bytes(32))

    monkeypatch.setattr("pulse_hf.schema.hashlib.sha256", constant)
    assert [names[place] for place in hash_order("item", names)] == ["a", "b", "c"]


def test_a_faultless_file_is_prepared_without_pandas(tmp_path: Path) -> None:
    """Importing it takes as long as preparing some ten thousand rows."""
    rows = [{"user_id": f"u{n % 9}", "item_id": f"i{n % 7}", "timestamp": 1_500_000_000 + n} for n in range(63)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = (
        "import sys; from pathlib import Path; from pulse_hf.data.prepare import PrepareSettings, prepare;"
        f"prepare(Path({str(tmp_path)!r}), PrepareSettings('table', {str(tmp_path / 'log.jsonl')!r}), seed=0);"
        "sys.exit('pandas' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert read_json(tmp_path / "sequences" / "report.json")["result"]["events"] == 63


def test_an_order_without_times(tmp_path: Path) -> None:
    rows = [{"user_id": "u", "item_id": item, "position": n} for item, n in (("c", 10), ("a", -1), ("b", 9))]
    path = write_rows(tmp_path / "log.jsonl", rows)
    settings = PrepareSettings(
        "table", str(path), columns=Columns(order="position"), min_user_events=0, min_item_events=0
    )
    prepare(tmp_path / "run", settings, seed=0)
    assert load_sequences(tmp_path / "run") == [Sequence("u", ("a", "b", "c"), (), (None,) * 3, ("",) * 3)]


def test_settings_from_a_file_and_their_limits(tmp_path: Path) -> None:
    plain: dict[str, Any] = {
        "format": "table",
        "reviews": "x.jsonl",
        "columns": {"order": "position"},
        "rating_range": [0, 10],
    }
    settings = PrepareSettings(**plain)
    assert settings.columns == Columns(order="position")
    assert settings.rating_range == (0, 10)
    assert not settings.timed
    for wrong in (
        {"format": "csv"},
        {"min_user_events": -1},
        {"timestamp_unit": "h"},
        {"item_text_words": 0},
        {"max_repair_rate": 2},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PrepareSettings(**{**plain, **wrong})
    with pytest.raises(ValueError, match=r"x\.jsonl: found nothing, expected a file"):
        prepare(tmp_path / "run", settings, seed=0)


def test_finished_changed_and_corrected_inputs(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "log.jsonl", [*shop(1), "{torn"])
    with pytest.raises(ValueError, match=r"log\.jsonl:401"):
        prepare(tmp_path / "run", table(path), seed=0)
    write_rows(path, shop(1))  # corrected: the failed attempt must not stand in the way
    folder = prepare(tmp_path / "run", table(path), seed=0)
    before = (folder / "manifest.json").stat().st_mtime_ns
    prepare(tmp_path / "run", table(path.rename(tmp_path / "moved.jsonl")), seed=0)
    assert (folder / "manifest.json").stat().st_mtime_ns == before, "the same content elsewhere is the same input"
    write_rows(tmp_path / "moved.jsonl", shop(2))
    with pytest.raises(ArtifactError, match=r"parents\.reviews"):
        prepare(tmp_path / "run", table(tmp_path / "moved.jsonl"), seed=0)
    prepare(tmp_path / "run", table(tmp_path / "moved.jsonl"), seed=0, force=True)


def test_nothing_left_and_metadata_of_another_shop(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "log.jsonl", shop(1))
    with pytest.raises(ValueError, match=r"no events are left \(round by round: 30 users"):
        prepare(tmp_path / "run", table(path, min_user_events=100), seed=0)
    other = write_rows(tmp_path / "items.jsonl", [{"item_id": "B00X", "title": "Elsewhere"}])
    with pytest.raises(ValueError, match=r"12 of 12 items have no row"):
        prepare(tmp_path / "run", table(path, metadata=str(other)), seed=0)
    assert not (tmp_path / "run" / "sequences").exists()


# -- real data -------------------------------------------------------------------------------------


def shared(folder: str) -> Path:
    if not (SHARED / folder).is_dir():
        pytest.skip(f"{SHARED / folder} is absent: real counts are not checked on this machine")
    return SHARED / folder


def test_gift_cards_counts(tmp_path: Path) -> None:
    data = shared("gift_cards_2018")
    settings = PrepareSettings(
        "amazon-2018",
        str(data / "Gift_Cards_5.json.gz"),
        str(data / "meta_Gift_Cards.json.gz"),
        min_user_events=0,
        min_item_events=0,
    )
    report = read_json(prepare(tmp_path, settings, seed=0) / "report.json")
    result = report["result"]
    assert (result["users"], result["items"], result["events"]) == (458, 148, 2965)
    assert report["reviews"]["read"] == 2972
    assert report["reviews"]["dropped"] == {"repeat of a user and item": 7}
    assert report["metadata"]["items_without_metadata"] == 0
    texts = [review for user in load_sequences(tmp_path) for review in user.reviews]
    texts += [item.item_text for item in load_items(tmp_path)]
    assert not any(mark in text for text in texts for mark in ("&amp;", "<br", "</", "\n"))
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for text in texts for character in text)


def test_magazine_titles_fall_back(tmp_path: Path) -> None:
    data = shared("magazine_subscriptions_2018")
    names = ("Magazine_Subscriptions_5.json.gz", "meta_Magazine_Subscriptions.json.gz")
    settings = PrepareSettings("amazon-2018", *(str(data / n) for n in names), min_user_events=0, min_item_events=0)
    report = read_json(prepare(tmp_path, settings, seed=0) / "report.json")
    assert [report["result"][key] for key in ("users", "items", "events")] == [348, 157, 2302]
    assert report["metadata"]["items_without_metadata"] == 6
    assert report["metadata"]["repaired"]["title from brand, category or description"] == 148
    items = load_items(tmp_path)
    assert not any("<" in item.title or not item.item_text.startswith(item.title) for item in items)
    assert len({item.title for item in items}) > 150


def test_luxury_beauty_counts(tmp_path: Path) -> None:
    data = shared("luxury_beauty_2018")
    form = {"format": "table", "columns": Columns(order="position"), "reviews": str(data / "interactions.jsonl.gz")}
    repeats = PrepareSettings(**form, deduplicate=False, min_user_events=0, min_item_events=0)
    result = read_json(prepare(tmp_path / "repeats", repeats, seed=0) / "report.json")["result"]
    assert [result[key] for key in ("users", "items", "events")] == [9_930, 6_141, 63_953]
    everyone = PrepareSettings(**form, min_user_events=0, min_item_events=0)
    report = read_json(prepare(tmp_path / "everyone", everyone, seed=0) / "report.json")
    assert report["core_rounds"] == [{"users": 9_930, "items": 6_141, "events": 54_164}]
    assert report["result"]["users_with_test"] == 9_154
    core = PrepareSettings(**form, expected={"users": 1_907, "items": 910, "events": 19_205})
    prepare(tmp_path / "core", core, seed=0)
    other = PrepareSettings(**form, expected={"users": 1_908})
    with pytest.raises(ValueError, match="found 1907 users, expected 1908"):
        prepare(tmp_path / "other", other, seed=0)
