"""What a published dataset, a pool and a card keep and what they leave out."""

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_data import event_row, table, write_rows

from pulse_hf import artifacts
from pulse_hf.artifacts import read_tensors
from pulse_hf.data.prepare import prepare
from pulse_hf.data.sequences import load_sequences
from pulse_hf.hub.dataset_card import dataset_card
from pulse_hf.hub.dataset_export import Exported, export_dataset
from pulse_hf.hub.dataset_import import place_dataset
from pulse_hf.hub.privacy import pseudonyms
from pulse_hf.retrieval.retriever import Pool
from pulse_hf.saving import _packed, _unpacked, _write_votes
from pulse_hf.schema import Decision, table_schema

QUOTE = "it is so very quiet at night"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Twenty people of four events each, prepared."""
    folder = tmp_path_factory.mktemp("people")
    rows = [
        event_row(f"u{user}", f"i{(user + number) % 7}", number, rating=5, review=QUOTE)
        for user in range(20)
        for number in range(4)
    ]
    settings = table(write_rows(folder / "log.jsonl", rows), min_user_events=0, min_item_events=0)
    prepare(folder / "run", settings, seed=0)
    return folder / "run"


def with_thoughts(run: Path) -> None:
    """One tree of two nodes per person; the second person's root and the third one's leaf quote a review."""

    def make(work: Path) -> dict[str, object]:
        thoughts, trees = [], []
        for number, sequence in enumerate(load_sequences(run)):
            decision = Decision(sequence.user_id, 3, "test")
            same = {**asdict(decision), "decision_id": decision.decision_id}
            texts = [QUOTE if number == 1 else "They like rest.", QUOTE if number == 2 else "They like peace."]
            fields = {name: None for name in table_schema("thoughts").names}
            thoughts.append(
                {**fields, **same, "reason": "They like peace.", "base_reason": texts[0], "leaf": 1, "model_id": "m"}
            )
            for node, text in enumerate(texts):
                fields = {name: None for name in table_schema("trees").names}
                trees.append({**fields, **same, "node": node, "parent": node - 1, "status": "ok", "text": text})
        artifacts.write_table(work / "thoughts.parquet", "thoughts", thoughts)
        artifacts.write_table(work / "trees.parquet", "trees", trees)
        return {}

    artifacts.build(run / "thoughts", artifacts.Fingerprint(stage="thoughts", settings={}, seed=0, parents={}), make)


def exported(run, word, folder):
    folder.mkdir()
    return export_dataset(run, word, folder, config="shop")


def test_the_order_of_rows_tells_nothing_of_user_ids(run, tmp_path):
    exported(run, "sequences", tmp_path / "out")
    with_thoughts(run)
    exported(run, "thoughts", tmp_path / "thoughts")
    names = pseudonyms(run)
    told = [*(tmp_path / "out").glob("*.parquet"), *(tmp_path / "thoughts").rglob("*.parquet")]
    assert len(told) == 5
    for path in told:
        users = pq.read_table(path).column("user_id").to_pylist()
        assert set(users) <= set(names.values())
        assert users == sorted(users)
    place_dataset(tmp_path / "out", tmp_path / "mine", source="a/b@1")
    mine = {one.user_id: (one.item_ids, one.timestamps) for one in load_sequences(tmp_path / "mine")}
    assert mine == {names[one.user_id]: (one.item_ids, one.timestamps) for one in load_sequences(run)}


def test_a_tree_of_which_a_node_quotes_is_left_out_whole_and_counted(run, tmp_path):
    with_thoughts(run)
    made = exported(run, "thoughts", tmp_path / "out")
    trees = pq.read_table(tmp_path / "out" / "trees" / "test.parquet").to_pylist()
    nodes = {(row["decision_id"], row["node"]) for row in trees}
    assert made.rows == {"thoughts": {"test": 19}, "trees": {"test": 36}}
    assert made.left_out == {"thoughts: quotes a review": 1, "trees: a node quotes a review": 4}
    assert all((row["decision_id"], row["parent"]) in nodes for row in trees if row["parent"] >= 0)
    card = dataset_card(made, "a/b", before="", license_id=None, synthetic=True)
    assert "4 rows of trees: a node quotes a review" in card
    assert "`status` is `ok`, or says why no reason could be read" in card


def test_a_pool_is_kept_in_an_order_that_comes_from_what_is_in_it():
    rng = np.random.default_rng(0)
    catalogue = [f"i{number}" for number in range(9)]
    rows = [tuple(rng.choice(catalogue, rng.integers(1, 5))) for _ in range(30)]
    pool = Pool(rng.normal(size=(30, 4)).astype(np.float32), rows)
    packed = _packed(pool, catalogue)
    loaded = _unpacked(packed, catalogue)
    assert loaded.item_ids != rows
    told = {vector.tobytes(): row for vector, row in zip(pool.vectors, rows, strict=True)}
    assert told == {vector.tobytes(): row for vector, row in zip(loaded.vectors, loaded.item_ids, strict=True)}
    others = rng.permutation(30)
    shuffled = Pool(pool.vectors[others], [rows[place] for place in others])
    for one in (loaded, shuffled):
        again = _packed(one, catalogue)
        assert all(again[name].equal(packed[name]) for name in packed)


def test_votes_are_kept_in_an_order_that_comes_from_what_is_in_them(tmp_path):
    rng = np.random.default_rng(0)
    vectors, indices, others = rng.normal(size=(20, 4)).astype(np.float32), np.arange(20) % 3, rng.permutation(20)
    for name, order in (("one", np.arange(20)), ("other", others)):
        _write_votes(tmp_path / name, SimpleNamespace(vectors=vectors[order], item_indices=indices[order]))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    kept = read_tensors(tmp_path / "one")
    assert not np.array_equal(kept["vectors"].numpy(), vectors)
    told = {vector.tobytes(): number for vector, number in zip(vectors, indices.tolist(), strict=True)}
    found = zip(kept["vectors"].numpy(), kept["item_indices"].tolist(), strict=True)
    assert told == {vector.tobytes(): number for vector, number in found}


OWNERS = """license: other
license_name: house-rules
license_link: LICENSE.md
language:
- de
size_categories:
- n<1K
extra_gated_prompt: Be kind.
extra_gated_fields:
  Name: text
"""


def test_what_a_datasets_owner_set_stays_and_a_licence_goes_with_its_name(tmp_path):
    def pushed(before, license_id=None):
        made = Exported("candidates", "shop", tmp_path, rows={"candidates": {"test": 1}})
        made.features["candidates"] = pa.schema([("item_ids", pa.list_(pa.string()))])
        return dataset_card(made, "a/b", before=before, license_id=license_id, synthetic=False)

    card = pushed("---\n" + OWNERS + "---\n# Mine\n")
    head = card.split("---\n")[1]
    for line in OWNERS.splitlines():
        assert line in head.splitlines()
    assert pushed(card) == card
    other = pushed(card, "mit")
    assert "license: mit" in other
    assert "house-rules" not in other
    assert "extra_gated_prompt: Be kind." in other
    assert "- en" in pushed("").splitlines()
