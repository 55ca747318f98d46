"""Files of every kind and published format: the same rows give the same result, whichever way they are read."""

from __future__ import annotations

import csv
import datetime
import errno
import gzip
import io
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loopback_hub import DropBefore, Status, Truncate, run_client
from test_data import DAY, FULL, START, event_row, read, shop, table, write_rows

import pulse_hf.data.prepare as prepare_module
from pulse_hf.artifacts import read_json
from pulse_hf.data import chunks, event_tables, sources
from pulse_hf.data.accounts import RowCount
from pulse_hf.data.columns import FORMATS, Columns, Format
from pulse_hf.data.items import read_items
from pulse_hf.data.prepare import PrepareSettings, prepare
from pulse_hf.data.recipes import RECIPES, recipe_named
from pulse_hf.data.sequences import decisions, load_items, load_sequences
from pulse_hf.schema import SPLITS


def as_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    return write_rows(path.with_suffix(".jsonl"), rows)


def as_gzip(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".jsonl.gz")
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def as_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path.with_suffix(".csv")


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def as_quoted(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    return path.with_suffix(".csv")


WRITERS = (as_jsonl, as_gzip, as_csv, as_quoted, as_parquet)


def test_format_row_order_and_chunk_size_do_not_change_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**row, "review": row["review"] + (' "so, so"' if row["timestamp"] % 5 == 0 else "")} for row in shop(4)]
    found = set()
    for writer in WRITERS:
        for order in range(3):
            path = writer(tmp_path / f"{writer.__name__}{order}", random.Random(order).sample(rows, len(rows)))
            for chunk_bytes in (50, 5_000, 8_000_000):
                small = partial(event_tables.event_tables, chunk_bytes=chunk_bytes)
                monkeypatch.setattr(prepare_module, "event_tables", small)
                run = tmp_path / f"run-{path.name}-{chunk_bytes}"
                folder = prepare(run, table(path), seed=0)
                found.add((folder / "sequences.parquet").read_bytes() + (folder / "items.parquet").read_bytes())
    assert len(found) == 1


@pytest.mark.parametrize("writer", WRITERS)
def test_faultless_files_take_the_fast_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Callable[[Path, list[dict[str, Any]]], Path]
) -> None:
    path = writer(tmp_path / "log", shop(2))
    expected = read(path, FULL)[0]

    def refuse(*_: Any) -> None:
        raise AssertionError("read row by row")

    monkeypatch.setattr(event_tables, "_values", refuse)
    assert (
        sum(one.num_rows for one in event_tables.event_tables(path, Format(FULL), RowCount())) == len(expected) == 400
    )
    bad = writer(tmp_path / "bad", [event_row("u", "a", 1, rating=6.0, review="x")])
    with pytest.raises(AssertionError, match="row by row"):
        list(event_tables.event_tables(bad, Format(FULL), RowCount()))


@pytest.mark.parametrize("writer", WRITERS)
def test_words_for_nothing_and_leading_zeros_stay_words_on_the_fast_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Callable[[Path, list[dict[str, Any]]], Path]
) -> None:
    words = ["NA", "N/A", "#N/A", "null", "NULL", "nan", "-NaN", "None", "true", "007", "1e5", "1.0", "x "]
    rows = [event_row(word, word, day, rating=5.0, review=word) for day, word in enumerate(words)]
    path = writer(tmp_path / "log", rows)
    assert len(read(path, FULL)[0]) == len(words)

    def refuse(*_: Any) -> None:
        raise AssertionError("read row by row")

    monkeypatch.setattr(event_tables, "_values", refuse)
    (found,) = event_tables.event_tables(path, Format(FULL), RowCount())
    assert found["user_id"].to_pylist() == found["item_id"].to_pylist() == words
    assert found["review"].to_pylist() == [word.strip() for word in words]


DEFECTS: list[Callable[[dict[str, Any], random.Random], Any]] = [
    lambda row, _: {**row, "user_id": None},
    lambda row, _: {**row, "user_id": " "},
    lambda row, rng: {**row, "user_id": rng.randrange(99)},
    lambda row, _: {**row, "item_id": 7.0},
    lambda row, _: {**row, "item_id": [1]},
    lambda row, _: {**row, "item_id": "a\u202eb"},
    lambda row, _: {key: value for key, value in row.items() if key != "timestamp"},
    lambda row, _: {**row, "timestamp": float(row["timestamp"])},
    lambda row, _: {**row, "timestamp": str(row["timestamp"])},
    lambda row, _: {**row, "timestamp": row["timestamp"] * 1000},
    lambda row, _: {**row, "timestamp": 10**19},
    lambda row, _: {**row, "rating": "5 stars"},
    lambda row, _: {**row, "rating": ""},
    lambda row, _: {**row, "rating": "4.5"},
    lambda row, _: {**row, "rating": True},
    lambda row, _: {**row, "rating": -1},
    lambda row, _: {**row, "review": ["a", "b"]},
    lambda row, _: {**row, "review": {"text": "x"}},
    lambda row, _: {**row, "review": 12},
    lambda row, _: {**row, "review": "lone \ud83d half"},
    lambda row, _: {**row, "review": "a\u2028b\x00<b>c</b> &amp;"},
    lambda row, _: {**row, "extra": {"deep": [1, 2]}},
    lambda row, _: json.dumps(row)[:-3],
    lambda row, _: json.dumps([row]),
    lambda row, _: json.dumps(row)[:-1] + ', "user_id": "v"}',
    lambda row, _: json.dumps(row)[:-1] + ', "rating": NaN}',
    lambda row, _: json.dumps(row) + json.dumps(row),
    lambda row, _: json.dumps(row) + "\r",
    lambda row, _: "  ",
    lambda row, _: "",
]


@pytest.mark.parametrize("block", range(20))
def test_every_row_of_a_damaged_file_is_accounted_for(tmp_path: Path, block: int) -> None:
    """read = kept + dropped in 500 random files, and by chunks as by rows (``read`` compares the two)."""
    for seed in range(25 * block, 25 * block + 25):
        _account_for(tmp_path, seed)


def _account_for(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    share = rng.choice([0.0, 0.02, 0.2, 1.0])
    rows: list[Any] = []
    for row in rng.sample(shop(seed), rng.randrange(1, 60)):
        rows.append(rng.choice(DEFECTS)(row, rng) if rng.random() < share else row)
    blank = sum(isinstance(row, str) and (not row or row.isspace()) for row in rows)
    if seed % 2:
        path = write_rows(tmp_path / "log.jsonl", rows)
        meant = len(rows) - blank
    else:
        path = tmp_path / "log.csv"
        names = ["user_id", "item_id", "timestamp", "rating", "review"]
        rows = [row for row in rows if isinstance(row, dict)] or [shop(seed)[0]]
        text = io.StringIO()
        quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
        writer = csv.writer(text, lineterminator=rng.choice(["\n", "\r\n"]), quoting=quoting)
        writer.writerow(names)
        for row in rows:
            cells = ["" if row.get(name) is None else row.get(name) for name in names]
            writer.writerow(cells if rng.random() < 0.95 else cells[:-1])
        path.write_bytes(text.getvalue().encode("utf-8", "replace"))
        meant = len(rows)
    if meant and any("timestamp" in row for row in rows):
        events, count = read(path, FULL, drop=True)
        assert count.read == meant
        assert count.read == len(events) + count.dropped.total()


def test_amazon_2014_metadata_are_python_literals(tmp_path: Path) -> None:
    path = tmp_path / "meta.json"
    path.write_text(
        "{'asin': '1', 'title': \"Soap's best\", 'categories': [['Beauty', 'Soap'], ['Home']], 'related': {}}\n"
        "{'asin': '2', 'title': __import__('os').getcwd()}\n",
        encoding="utf-8",
    )
    form = FORMATS["amazon-2014"]
    with pytest.raises(ValueError, match=r"meta\.json:2: found .*Python dictionary of literals"):
        read_items(path, form.item_columns, {"1", "2"}, layout=form.item_layout)
    items, count = read_items(path, form.item_columns, {"1", "2"}, layout=form.item_layout, drop_bad_rows=True)
    assert items["1"].item_text == "Soap's best. Soap, Home"
    assert count.dropped == {"not a Python literal": 1}


def test_amazon_2023(tmp_path: Path) -> None:
    rows = [
        {"user_id": "U", "parent_asin": f"P{n}", "asin": "A", "rating": 4.0, "timestamp": (START + n) * 1000 + 5}
        | {"title": "Great", "text": f"Lasts {n}"}
        for n in range(3)
    ]
    meta = [{"parent_asin": f"P{n}", "title": f"Soap {n}", "store": "Lush", "categories": ["B"]} for n in range(3)]
    settings = PrepareSettings(
        "amazon-2023",
        str(write_rows(tmp_path / "log.jsonl", rows)),
        str(write_rows(tmp_path / "meta.jsonl", meta)),
        min_user_events=0,
        min_item_events=0,
    )
    prepare(tmp_path, settings, seed=0)
    (user,) = load_sequences(tmp_path)
    assert user.item_ids == ("P0", "P1", "P2")
    assert user.timestamps == (START, START + 1, START + 2)
    assert user.reviews[1] == "Great. Lasts 1"
    assert {item.item_text for item in load_items(tmp_path)} == {f"Soap {n}. Lush. B" for n in range(3)}


@pytest.mark.parametrize(
    ("name", "log", "items"),
    [
        ("movielens-100k", "1\t7\t3\t{0}\n1\t8\t5\t{1}\n", "7|Café (1995)|01-Jan-1995||http://x|{flags}\n"),
        ("movielens-1m", "1::7::3::{0}\n1::8::5::{1}\n", "7::Café (1995)::Comedy|Drama\n"),
        (
            "movielens-latest",
            "userId,movieId,rating,timestamp\n1,7,3.0,{0}\n1,8,0.5,{1}\n",
            'movieId,title,genres\n7,"Café (1995)",Comedy|Drama\n',
        ),
    ],
)
def test_movielens(tmp_path: Path, name: str, log: str, items: str) -> None:
    flags = "|".join("1" if genre in (5, 8) else "0" for genre in range(19))
    suffix = ".csv" if name == "movielens-latest" else ".dat"
    (tmp_path / f"log{suffix}").write_text(log.replace("{0}", str(START)).replace("{1}", str(START + 9)))
    encoding = "utf-8" if name == "movielens-latest" else "latin-1"
    (tmp_path / f"items{suffix}").write_bytes(items.replace("{flags}", flags).encode(encoding))
    events, _ = read(tmp_path / f"log{suffix}", FORMATS[name])
    assert [event[:3] for event in events] == [("1", "7", START), ("1", "8", START + 9)]
    settings = PrepareSettings(
        name,  # type: ignore[arg-type]
        str(tmp_path / f"log{suffix}"),
        str(tmp_path / f"items{suffix}"),
        min_user_events=0,
        min_item_events=0,
    )
    prepare(tmp_path, settings, seed=0)
    found = {item.item_id: item.item_text for item in load_items(tmp_path)}
    assert found["7"] == "Café (1995). Comedy, Drama"
    assert found["8"] == "Item 8"
    (user,) = load_sequences(tmp_path)
    assert user.timestamps == (START, START + 9)


def test_a_row_with_other_columns_than_the_layout(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text(f"1::7::3::{START}\n1::7::3\n")
    with pytest.raises(ValueError, match=r"ratings\.dat:2: .*4 columns between '::', not 3"):
        read(tmp_path / "ratings.dat", FORMATS["movielens-1m"])
    assert Format().encoding == "utf-8"


def test_parquet_times_and_numbers(tmp_path: Path) -> None:
    when = [datetime.datetime.fromtimestamp(START + day * DAY, datetime.UTC) for day in (0, 1)]
    columns = {"user_id": [12, 13], "item_id": ["a", "b"], "timestamp": pa.array(when, pa.timestamp("us", "UTC"))}
    pq.write_table(pa.table({**columns, "rating": [5, 4], "review": ["x", None]}), tmp_path / "log.parquet")
    events, count = read(tmp_path / "log.parquet", FULL)
    assert [tuple(event) for event in events] == [("12", "a", START, 5.0, "x"), ("13", "b", START + DAY, 4.0, "")]
    assert count.repaired["number as id"] == 2
    pq.write_table(
        pa.table({**columns, "user_id": ["u", None], "rating": [5, 4], "review": ["", ""]}), tmp_path / "n.parquet"
    )
    with pytest.raises(ValueError, match=r"n\.parquet: row 2: field 'user_id': found None"):
        read(tmp_path / "n.parquet", FULL)
    fine = [START * 1000, START * 1000 + 300]  # ties, if milliseconds were dropped
    pq.write_table(
        pa.table({**columns, "timestamp": pa.array(fine, pa.timestamp("ms")), "rating": [5, 4], "review": ["", ""]}),
        tmp_path / "fine.parquet",
    )
    with pytest.raises(ValueError, match=r"fine\.parquet: column 'timestamp' .*no whole 's'.* timestamp_unit 'ms'"):
        read(tmp_path / "fine.parquet", FULL)
    whole = (tmp_path / "log.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) - 9])
    with pytest.raises(ValueError, match=r"cut\.parquet: not a whole Parquet file.* Copy or download it again"):
        read(tmp_path / "cut.parquet", FULL)
    with pytest.raises(ValueError, match=r"log\.parquet: the columns are .* expected also \['when'\]"):
        read(tmp_path / "log.parquet", Columns(timestamp="when"))


def test_a_flipped_bit_of_parquet_is_damage_and_a_bad_disk_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(
        pa.table({"user_id": [f"person {one}" for one in range(500)], "item_id": ["a"] * 500, "at": range(500)}),
        tmp_path / "log.parquet",
        write_page_checksum=True,
        compression="none",
        use_dictionary=False,
    )
    columns = Columns(timestamp=None, order="at", rating=None, review=None)
    assert len(read(tmp_path / "log.parquet", columns)[0]) == 500
    whole = bytearray((tmp_path / "log.parquet").read_bytes())
    whole[whole.index(b"person 250") + 7] ^= 1
    (tmp_path / "flipped.parquet").write_bytes(whole)
    with pytest.raises(ValueError, match=r"flipped\.parquet: not a whole Parquet file"):
        read(tmp_path / "flipped.parquet", columns)

    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pq, "ParquetFile", broken)
    with pytest.raises(OSError, match="Input/output error"):
        read(tmp_path / "log.parquet", columns)


def test_text_of_parquet_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xe9x")])
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["i"], "timestamp": [START], "review": broken}),
                   tmp_path / "log.parquet")  # fmt: skip
    with pytest.raises(ValueError, match=r"log\.parquet: rows 1 to 1: column 'review' is damaged or not UTF-8"):
        read(tmp_path / "log.parquet", Columns(review="review"))


def test_ratings_of_another_scale_are_kept_as_of_five_stars(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "log.jsonl", [event_row("u", "a", 1, rating=8), event_row("u", "b", 2, rating=None)])
    count = RowCount()
    form = Format(Columns(rating="rating"), rating_range=(0.0, 10.0))
    tables = list(event_tables.event_tables(path, form, count))
    assert [row["rating"] for one in tables for row in one.to_pylist()] == [4.0, None]
    assert count.repaired["rating of another scale as of five stars"] == 1
    for wrong in ((5.0, 1.0), (-5.0, 0.0)):
        with pytest.raises(ValueError, match="rating_range is"):
            PrepareSettings("table", "x", rating_range=wrong)


def test_a_long_cell_is_read_beside_doubled_quotes(tmp_path: Path) -> None:
    long = "word " * 40_000
    (tmp_path / "log.csv").write_text(
        f'user_id,item_id,timestamp,review\nu,a,{START},"he said ""hi"""\nu,b,{START + 1},{long}\n'
    )
    events, _ = read(tmp_path / "log.csv", Columns(review="review"))
    quoted, cell = (event[4] for event in events)
    assert quoted == 'he said "hi"'
    assert long.startswith(cell)  # cut and counted, as any text of that length
    assert len(cell) > 1_000


def test_nan_in_a_column_that_nobody_reads_is_passed_over_wherever_it_stands(tmp_path: Path) -> None:
    rows: list[Any] = [{**event_row("u", f"i{n}", n), "price": 1.5} for n in range(4)]
    for place in range(4):
        told = [json.dumps(row | ({"price": float("nan")} if n == place else {})) for n, row in enumerate(rows)]
        path = tmp_path / f"{place}.jsonl"
        path.write_text("\n".join(told) + "\n")
        for chunk_bytes in (10, 1 << 20):
            tables = event_tables.event_tables(path, Format(Columns()), RowCount(), chunk_bytes=chunk_bytes)
            assert sum(table.num_rows for table in tables) == 4


def test_recipes_say_what_they_expect_and_how_they_differ() -> None:
    for name, recipe in RECIPES.items():
        assert "Table 2" in recipe.difference()
        assert (recipe.counts is None) == (not recipe_named(name).settings.expected)
    assert recipe_named("luxury-beauty/a-llmrec").settings.core_rounds == 1
    with pytest.raises(ValueError, match="no recipe 'beauty'; there are luxury-beauty/paper"):
        recipe_named("beauty")


def test_global_time_split_by_hand(tmp_path: Path) -> None:
    days = {"u": [0, 1, 5, 6, 8, 9], "v": [0, 2, 9, 9], "w": [1, 2, 3], "x": [5, 8], "y": [6, 7]}
    rows = [
        {"user_id": user, "item_id": f"i{day % 4}{user}", "timestamp": START // DAY * DAY + day * DAY + number}
        for user, own in days.items()
        for number, day in enumerate(own)
    ]
    settings = PrepareSettings(
        "table",
        str(write_rows(tmp_path / "log.jsonl", rows)),
        deduplicate=False,
        min_user_events=0,
        min_item_events=0,
        split="global-time",
        validation_share=0.3,
        test_share=0.25,
    )
    # 17 events: 5 of them (0.29) from day 8 on, 3 (0.18) from day 9 on, so the test period begins on day 8;
    # 10 (0.59) from day 5 on, 8 (0.47) from day 6 on, so the validation period begins on day 5.
    report = read_json(prepare(tmp_path, settings, seed=0) / "report.json")
    assert report["split"] == {
        "by": "global-time",
        "validation": START // DAY * DAY + 5 * DAY,
        "test": START // DAY * DAY + 8 * DAY,
    }
    users = {one.user_id: one for one in load_sequences(tmp_path)}
    assert {name: (len(one), one.cut) for name, one in users.items()} == {
        "u": (5, (2, 2, 4)),  # the event of day 6 is history only, the one of day 9 is left out
        "v": (3, (2, -1, 2)),
        "w": (3, (3, -1, -1)),
        "x": (2, (0, 0, 1)),
        "y": (2, (0, 0, -1)),
    }
    assert report["reviews"]["dropped"] == {"after the user's test target": 2}
    found = {split: {(d.user_id, d.position) for d in decisions(users.values(), split)} for split in SPLITS}
    assert found["test"] == {("u", 4), ("v", 2), ("x", 1)}
    assert found["validation"] == {("u", 2)}
    assert found["train"] == {("u", 1), ("v", 1), ("w", 1), ("w", 2)}
    assert users["u"].before(4).item_ids == users["u"].item_ids[:4]
    assert users["u"].training().item_ids == users["u"].item_ids[:2]
    latest = max(t for one in users.values() for t in one.training().timestamps)
    assert latest < report["split"]["validation"]
    with pytest.raises(ValueError, match="9 days cannot be cut"):
        prepare(tmp_path / "few", replace(settings, validation_share=0.9, test_share=0.05), seed=0)
    with pytest.raises(ValueError, match="an order and no times"):
        replace(settings, columns=Columns(order="timestamp"))


def test_split_by_people_by_hand(tmp_path: Path) -> None:
    rows = [
        {"user_id": f"u{user}", "item_id": f"i{number}", "timestamp": START + number}
        for user in range(200)
        for number in range(1 + user % 4)
    ]
    settings = PrepareSettings(
        "table",
        str(write_rows(tmp_path / "log.jsonl", rows)),
        min_user_events=0,
        min_item_events=0,
        split="people",
        validation_share=0.2,
        test_share=0.3,
    )
    report = read_json(prepare(tmp_path, settings, seed=0) / "report.json")
    assert report["split"] == {"by": "people", "validation_share": 0.2, "test_share": 0.3}
    users = {one.user_id: one for one in load_sequences(tmp_path)}
    parts: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
    for name, one in users.items():
        last = len(one) - 1
        part = {(last + 1, -1, -1): "train", (0, last, -1): "validation", (0, -1, last): "test"}[one.cut]
        parts[part].add(name)
        assert one.training().item_ids == (one.item_ids if part == "train" else ())
        assert one.before(last).item_ids == one.item_ids[:last]  # the whole history is there to decide from
    assert 17 < len(parts["validation"]) < 63  # of 200, four sigma each way
    assert 34 < len(parts["test"]) < 86
    found = {split: {(d.user_id, d.position) for d in decisions(users.values(), split)} for split in SPLITS}
    for part in ("validation", "test"):  # one for each who has a history
        assert found[part] == {(name, len(users[name]) - 1) for name in parts[part] if len(users[name]) > 1}
    assert {name for name, _ in found["train"]} <= parts["train"]
    assert report["result"]["users_with_test"] == len(found["test"])
    # Who is kept does not change with who else is there, and larger shares keep the same people and more.
    few = [row for row in rows if int(row["user_id"][1:]) % 2]
    write_rows(tmp_path / "few.jsonl", few)
    prepare(tmp_path / "few", replace(settings, reviews=str(tmp_path / "few.jsonl"), test_share=0.4), seed=1)
    tested = {one.user_id for one in load_sequences(tmp_path / "few") if one.cut and one.cut[2] >= 0}
    assert tested >= {name for name in parts["test"] if int(name[1:]) % 2}
    with pytest.raises(ValueError, match="together below 1"):
        replace(settings, test_share=0.8)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = as_jsonl(tmp_path / "log", shop(1))

    def growing(*args: Any, **more: Any) -> Any:
        yield from event_tables.event_tables(*args, **more)
        with path.open("a") as stream:
            stream.write(json.dumps(event_row("u", "a", 1, rating=5, review="late")) + "\n")

    monkeypatch.setattr(prepare_module, "event_tables", growing)
    with pytest.raises(ValueError, match=r"log\.jsonl: changed while it was read"):
        prepare(tmp_path / "run", table(path), seed=0)
    assert not (tmp_path / "run" / "sequences").exists()


def test_a_gzip_bomb_is_refused_before_it_fills_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "UNSUSPICIOUS_BYTES", 100_000)
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n" * 3_000_000))
    with pytest.raises(ValueError, match=r"log\.jsonl\.gz: unpacks to more than .* 200 times its size"):
        read(path, FULL)


def test_a_dataset_in_shards_is_read_as_the_one_file_would_be(tmp_path: Path, hub: Any) -> None:
    rows = shop(1)
    whole = prepare(tmp_path / "whole", table(as_jsonl(tmp_path / "log", rows)), seed=0) / "sequences.parquet"
    dataset = datasets.Dataset.from_list(rows)
    for place in range(3):
        dataset.shard(3, place).to_parquet(str(tmp_path / f"train-{place:05d}-of-00003.parquet"))
    settings = table(Path(tmp_path / "train-*.parquet"))
    made = prepare(tmp_path / "shards", settings, seed=0)
    assert (made / "sequences.parquet").read_bytes() == whole.read_bytes()
    assert read_json(made / "report.json")["reviews"]["read"] == len(rows)
    with pytest.raises(ValueError, match=r"test-\*\.parquet: no file is called so"):
        prepare(tmp_path / "x", replace(settings, reviews=str(tmp_path / "test-*.parquet")), seed=0)

    files = {f"data/{path.name}": path.read_bytes() for path in tmp_path.glob("train-*.parquet")}
    hub.create_repo("alice/log", {**files, "data/old/train-9.parquet": b"no"}, repo_type="dataset")
    program = """
        import sys
        from pulse_hf.data.sources import local_files
        for path in local_files("hf://datasets/alice/log/data/train-*.parquet"): print(path.name)
    """
    told = run_client(program, hub.environment(tmp_path / "home")).split()
    assert told == sorted(Path(name).name for name in files)


def test_a_hub_that_fails_on_the_way_is_told_in_one_sentence(tmp_path: Path, hub: Any) -> None:
    for name in ("down", "busy", "cut"):
        hub.create_repo(f"alice/{name}", {"a.jsonl": b"x" * 9_000}, repo_type="dataset")
    hub.faults.add(DropBefore(), path="/api/datasets/alice/down", times=None)
    hub.faults.add(Status(503, retry_after=0), path="/api/datasets/alice/busy", times=None)
    hub.faults.add(Truncate(100), method="GET", path="/alice/cut/resolve/", times=None)
    program = """
        from pulse_hf.data.sources import local_files
        for file in ("down/*.jsonl", "busy/*.jsonl", "cut/a.jsonl", "none/*.jsonl"):
            try:
                print(local_files(f"hf://datasets/alice/{file}"))
            except (ConnectionError, ValueError) as error:
                print(type(error).__name__, *str(error).split())
    """
    told = run_client(program, hub.environment(tmp_path / "home"), patient=False).splitlines()
    kinds = [line.split()[0] for line in told]
    assert kinds == ["ConnectionError", "ConnectionError", "ConnectionError", "ValueError"], told
    for line, file in zip(told, ("down/*.jsonl", "busy/*.jsonl", "cut/a.jsonl", "none/*.jsonl"), strict=True):
        assert f"hf://datasets/alice/{file}: the Hub " in line
    assert all("Try again later" in line for line in told[:3])
    assert "status 503" in told[1]


def test_an_address_of_another_kind_is_told_as_it_was_given() -> None:
    with pytest.raises(ValueError, match=r"https://shop\.example/log\.csv: expected a file of this machine"):
        sources.local_file("https://shop.example/log.csv")


def test_a_reader_that_is_given_up_waits_for_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    # The garbage collector may close it within a thread that is starting, where joining another one waits for ever.
    joined = []
    monkeypatch.setattr(threading.Thread, "join", lambda self, timeout=None: joined.append(self))
    reader = chunks.ahead(iter([chunks.Chunk(Path("log.jsonl"), line, "{}\n") for line in (1, 2, 3)]))
    assert next(reader).first_line == 1
    reader.close()
    assert joined == []


def test_a_large_file_of_the_hub_that_breaks_off_is_silence_and_our_own_faults_are_not():
    # The client's mover of large files (Xet) is compiled code that raises RuntimeError from within huggingface_hub.
    client = {"__name__": "huggingface_hub.file_download"}
    exec("def fetch(): raise RuntimeError('Data processing error: connection reset')", client)
    with (
        pytest.raises(ConnectionError, match=r"hf://datasets/a/b/c\.jsonl: the Hub .* connection reset"),
        sources._plainly("hf://datasets/a/b/c.jsonl"),
    ):
        client["fetch"]()
    with pytest.raises(RuntimeError, match="ours"), sources._plainly("hf://datasets/a/b/c.jsonl"):
        raise RuntimeError("ours")


class _Hub(BaseHTTPRequestHandler):
    """One file of one dataset repo."""

    content = b"".join(json.dumps(row).encode() + b"\n" for row in shop(1))

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, body: bool) -> None:
        found = self.path.startswith("/datasets/some/shop/resolve/v1/data/log.jsonl")
        self.send_response(200 if found else 404)
        if found:
            self.send_header("x-repo-commit", "0" * 40)
            self.send_header("etag", '"abc"')
            self.send_header("content-length", str(len(self.content)))
        else:
            self.send_header("x-error-code", "EntryNotFound")
            self.send_header("content-length", "0")
        self.end_headers()
        if found and body:
            self.wfile.write(self.content)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def test_a_file_of_a_dataset_repo_is_fetched_and_is_the_same_input(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hf")}
    here |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def run(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pulse_hf.cli.main", "prepare", "--run", str(tmp_path / "run")]
        command += ["--set", "prepare.format=table", "--set", f"prepare.reviews={name}"]
        command += ["--set", 'prepare.columns={"rating": "rating", "review": "review"}']
        command += ["--set", "prepare.min_user_events=3", "--set", "prepare.min_item_events=3"]
        return subprocess.run(command, capture_output=True, text=True, env=here, timeout=120)

    done = run("hf://datasets/some/shop@v1/data/log.jsonl")
    assert done.returncode == 0, done.stderr
    local = prepare(tmp_path / "local", table(as_jsonl(tmp_path / "log", shop(1))), seed=0)
    fetched = tmp_path / "run" / "sequences" / "sequences.parquet"
    assert fetched.read_bytes() == (local / "sequences.parquet").read_bytes()
    missing = run("hf://datasets/some/shop@v1/other.jsonl")
    assert missing.returncode == 2
    assert "other.jsonl: the Hub does not give it (status 404)" in missing.stderr
    server.shutdown()
    with pytest.raises(ValueError, match="expected hf://datasets/OWNER/REPO"):
        prepare(tmp_path / "x", replace(table(Path("x")), reviews="hf://models/a/b"), seed=0)
    with pytest.raises(ValueError, match="nowhere.jsonl: found nothing, expected a file"):
        prepare(tmp_path / "x", table(Path("nowhere.jsonl")), seed=0)
