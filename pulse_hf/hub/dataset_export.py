"""Artefacts of a run as datasets of the Hub: Parquet by split, people under other names, reviews left out.

What leads to a person (e-mail, telephone and order numbers, streets) is taken out of the texts and counted. Rows are
in the order of the other names: that of the run is one of user ids, and whoever has these could read off who is who.

A dataset repo holds one folder per artefact::

    <config>/rationales/train.parquet checksums.json       config "<config>"
    <config>/thoughts/{train,validation,test}.parquet      config "<config>-thoughts"
                      trees/{train,...}.parquet            config "<config>-trees"
    <config>/sequences/{train,...}.parquet                 config "<config>-sequences", one row per event
                       items/train.parquet                 config "<config>-items", the catalogue
    <config>/candidates/{train,...}.parquet                config "<config>-candidates"
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_hf.artifacts import ArtifactError, read_manifest, read_table
from pulse_hf.data.sequences import items_by_id, sequences_by_user
from pulse_hf.hub.files import seal_folder
from pulse_hf.hub.privacy import Quotes, pseudonyms, redacted, without_folders
from pulse_hf.reasoning.server_engine import split_address
from pulse_hf.schema import SPLITS, table_schema

if TYPE_CHECKING:
    import pyarrow as pa

WORDS = ("rationales", "thoughts", "sequences", "candidates")
HISTORY = "history"
_TEXTS = ("text", "raw", "reason", "base_reason")


@dataclass
class Exported:
    """One artefact made ready for a dataset repo.

    Args:
        word: Which artefact.
        config: Name of the configuration.
        folder: Where its files lie.
        rows: Per table and split the number of rows.
        left_out: Rows left out, by reason.
        redacted: What was taken out of texts, by kind.
        features: Per table the Arrow schema.
        facts: What made it: settings, seed, model, prompts, as the manifest has them.
        reviews: Whether reviews are in it.
    """

    word: str
    config: str
    folder: Path
    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    redacted: Counter[str] = field(default_factory=Counter)
    features: dict[str, pa.Schema] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    reviews: bool = False

    @property
    def under(self) -> str:
        """Its folder inside the repo."""
        return f"{self.config}/{self.word}"

    def config_name(self, table: str) -> str:
        """What ``load_dataset`` calls one of its tables."""
        return self.config if table == "rationales" else f"{self.config}-{table}"

    def place(self, table: str, split: str) -> str:
        """A table's file of one split, inside its folder."""
        return f"{split}.parquet" if table == self.word else f"{table}/{split}.parquet"


def export_dataset(run: Path, word: str, folder: Path, *, config: str, include_reviews: bool = False) -> Exported:
    """Write an artefact of a run as files of a dataset repo.

    Args:
        run: The run's folder.
        word: One of :data:`WORDS`.
        folder: An empty folder for the files.
        config: Name of the configuration, for example ``"luxury-beauty"``.
        include_reviews: Keep people's reviews, and texts that quote them (six words in a row).

    Raises:
        ValueError: There is no such artefact, or the name of the configuration is no plain word.
        ArtifactError: The artefact is missing or damaged.
    """
    if word not in WORDS:
        raise ValueError(f"{word!r} is no dataset; expected one of {', '.join(WORDS)}")
    if not config.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ValueError(f"config is {config!r}; expected letters, digits, '-', '_' and '.', like luxury-beauty")
    manifest = read_manifest(run / word)
    facts = _public_facts(manifest["fingerprint"])
    made = Exported(word, config, folder, facts=facts, reviews=include_reviews)
    source = _Source(run, include_reviews)
    for table in {"thoughts": ("thoughts", "trees"), "sequences": ("sequences", "items")}.get(word, (word,)):
        _write(made, table, _rows_of(table, source, made))
    seal_folder(folder, word, {"config": config, "rows": made.rows, "made_by": made.facts, "reviews": include_reviews})
    return made


def _public_facts(fingerprint: Mapping[str, str]) -> dict[str, str]:
    """A fingerprint (JSON texts) without folders of this machine, nor where a server stands."""
    facts = {key: json.loads(value) for key, value in fingerprint.items()}
    if facts.get("settings.engine") == "recorded":
        facts["settings.model"] = Path(facts["settings.model"]).name
    return {key: json.dumps(_public(value)) for key, value in facts.items()}


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _public(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_public(one) for one in value]
    return without_folders(split_address(value)[0]) if isinstance(value, str) else value


class _Source:
    """What every table needs of a run, read once."""

    def __init__(self, run: Path, include_reviews: bool) -> None:
        self.run, self.include_reviews = run, include_reviews
        self.sequences = sequences_by_user(run)
        self.items = items_by_id(run)
        self.names = pseudonyms(run)
        self.quotes = Quotes({} if include_reviews else {user: one.reviews for user, one in self.sequences.items()})

    def decisions(self, table: str, file: str, made: Exported) -> list[dict[str, Any]]:
        """The rows of a table that has one or more rows per decision, people renamed and in the order of these names.

        Decisions with a row that quotes are left out whole: a tree without one of its nodes is not a tree.
        """
        rows = read_table(self.run / made.word / file).to_pylist()
        quoting = {row["decision_id"] for row in rows if self._quotes(row)}
        kept = [row for row in rows if row["decision_id"] not in quoting]
        if quoting:
            made.left_out[f"{table}: {'a node ' if table == 'trees' else ''}quotes a review"] += len(rows) - len(kept)
        for row in kept:
            name = self.names[row["user_id"]]
            row |= {"user_id": name, "decision_id": f"{name}#{row['position']}"}
            row |= {name: redacted(row[name], made.redacted) for name in _TEXTS if row.get(name)}
            row |= {"model_id": without_folders(row["model_id"])} if "model_id" in row else {}
        return sorted(kept, key=lambda row: row["user_id"])

    def _quotes(self, row: Mapping[str, Any]) -> bool:
        return any(self.quotes.found(row["user_id"], row[name]) for name in _TEXTS if row.get(name))


def _rows_of(table: str, source: _Source, made: Exported) -> pa.Table:
    if table == "rationales":
        return _rationales(source, made)
    if table == "sequences":
        return _events(source, made)
    if table == "items":
        return _table(table, [asdict(item) for item in source.items.values()])
    return _table(table, source.decisions(table, f"{table}.parquet", made))


def _rationales(source: _Source, made: Exported) -> pa.Table:
    """With the item that is explained beside each rationale, which is what a reader wants to know first."""
    import pyarrow as pa

    users = {name: user for user, name in source.names.items()}
    rows = source.decisions("rationales", "rationales.parquet", made)
    for row in rows:
        item_id = source.sequences[users[row["user_id"]]].item_ids[row["position"]]
        row |= {"item_id": item_id, "title": source.items[item_id].title}
    fields = [*table_schema("rationales"), pa.field("item_id", pa.string()), pa.field("title", pa.string())]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def _events(source: _Source, made: Exported) -> pa.Table:
    """One row per event; its split says as whose target it serves."""
    import pyarrow as pa

    schema = [
        ("user_id", pa.string()),
        ("position", pa.int32()),
        ("split", pa.string()),
        ("item_id", pa.string()),
        ("timestamp", pa.int64()),
        ("rating", pa.float32()),
        ("review", pa.string()),
    ]
    rows = [
        {
            "user_id": source.names[one.user_id],
            "position": position,
            "split": one.split_of(position) or HISTORY,
            "item_id": item_id,
            "timestamp": one.timestamps[position] if one.timestamps else None,
            "rating": one.ratings[position],
            "review": redacted(one.reviews[position], made.redacted) if source.include_reviews else "",
        }
        for one in sorted(source.sequences.values(), key=lambda one: source.names[one.user_id])
        for position, item_id in enumerate(one.item_ids)
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema(schema))


def _table(name: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), schema=table_schema(name))


def _write(made: Exported, table: str, rows: pa.Table) -> None:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    made.features[table] = rows.schema
    found = set(rows["split"].to_pylist()) if "split" in rows.column_names else {"train"}
    splits = [split for split in (*SPLITS, HISTORY) if split in found]
    made.rows[table] = {}
    for split in splits:
        part = rows.filter(pc.equal(rows["split"], split)) if "split" in rows.column_names else rows
        path = made.folder / made.place(table, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(part, path, compression="zstd")
        made.rows[table][split] = part.num_rows
    if not made.rows[table]:
        raise ArtifactError(f"{made.word}: no row of {table} may be published (all quote reviews); --include-reviews?")
