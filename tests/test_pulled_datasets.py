"""A pulled dataset that is not one of ours is told so, whatever it lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pulse_hf.artifacts import ArtifactError, read_manifest
from pulse_hf.hub.dataset_import import place_dataset
from pulse_hf.hub.files import seal_folder
from pulse_hf.schema import table_schema

MADE_BY = {"settings.split": '"leave-one-out"', "seed": "7"}
EVENT = {"user_id": "u", "position": 0, "split": "train", "item_id": "i"}
EVENT |= {"timestamp": 1, "rating": 5.0, "review": ""}
ITEM = {"item_id": "i", "title": "Kettle", "item_text": "a kettle"}


def published(folder: Path, kind: str, tables: dict[str, list[dict[str, Any]]], about: Any = None) -> Path:
    for name, rows in tables.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / name)
    seal_folder(folder, kind, {"made_by": MADE_BY} if about is None else about)
    return folder


def without(row: dict[str, Any], column: str) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != column}]


def test_a_whole_one_is_placed(tmp_path: Path) -> None:
    tables = {"history.parquet": [EVENT], "items/train.parquet": [ITEM]}
    folder = place_dataset(published(tmp_path / "set", "sequences", tables), tmp_path / "run", source="a/b@1")
    assert read_manifest(folder)["fingerprint"]["seed"] == "7"


@pytest.mark.parametrize(
    "about", [{}, {"made_by": None}, {"made_by": []}, {"made_by": {"seed": "x"}}, {"made_by": {"settings.a": 3}}]
)
def test_a_seal_that_does_not_say_what_made_it(tmp_path: Path, about: dict[str, Any]) -> None:
    tables = {"history.parquet": [EVENT], "items/train.parquet": [ITEM]}
    folder = published(tmp_path / "set", "sequences", tables, about)
    with pytest.raises(ArtifactError, match=r"a/b@1: made_by in its checksums\.json is .*, expected"):
        place_dataset(folder, tmp_path / "run", source="a/b@1")


@pytest.mark.parametrize("column", EVENT)
def test_events_that_lack_a_column(tmp_path: Path, column: str) -> None:
    tables = {"history.parquet": without(EVENT, column), "items/train.parquet": [ITEM]}
    with pytest.raises(ArtifactError, match=rf"history\.parquet: lacks the columns {column}, has"):
        place_dataset(published(tmp_path / "set", "sequences", tables), tmp_path / "run", source="a/b@1")


@pytest.mark.parametrize("column", ITEM)
def test_a_catalogue_that_lacks_a_column(tmp_path: Path, column: str) -> None:
    tables = {"history.parquet": [EVENT], "items/train.parquet": without(ITEM, column)}
    with pytest.raises(ArtifactError, match=rf"items/train\.parquet: lacks the columns {column}, has"):
        place_dataset(published(tmp_path / "set", "sequences", tables), tmp_path / "run", source="a/b@1")


def test_rows_of_decisions_that_lack_a_column(tmp_path: Path) -> None:
    row = {name: None for name in table_schema("candidates").names} | {"decision_id": "u#1"}
    tables = {"test.parquet": without(row, "target_index")}
    with pytest.raises(ArtifactError, match=r"test\.parquet: lacks the columns target_index, has decision_id"):
        place_dataset(published(tmp_path / "set", "candidates", tables), tmp_path / "run", source="a/b@1")
