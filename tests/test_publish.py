"""A loaded recommender on its way to the Hub: who is refused before anything is saved, and what its card says."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from loopback_hub import run_client

from pulse_hf.artifacts import write_json
from pulse_hf.hub.cards import render
from pulse_hf.hub.model_cards import ModelCards
from pulse_hf.models.scorer.adapter import ScorerRecord
from pulse_hf.publish import Publication, publish
from pulse_hf.saving import _write_card
from pulse_hf.schema import Item

# argv: options of push_to_hub as JSON; it has no parts, so whatever is saved of it fails
PUSH = """
    import json, sys
    from threading import RLock
    from pulse_hf.recommender import PulseRecommender
    recommender = PulseRecommender.__new__(PulseRecommender)
    recommender.parts = recommender.run = None
    recommender._turn = RLock()
    try:
        recommender.push_to_hub(**json.loads(sys.argv[1]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def test_a_recommender_is_refused_before_it_is_saved(hub, tmp_path):
    hub.create_repo("alice/shop", {"notes.md": b"mine"})
    alice = hub.environment(tmp_path / "cache", "alice")
    reader = alice | {"HF_TOKEN": hub.token("alice", "read")}
    for env, options, kind, words in (
        (reader, {"repo_id": "alice/shop"}, "NoAccessError", "this token may not write to alice/shop"),
        (reader, {"repo_id": "alice/new"}, "NoAccessError", "this token may not write to alice/new"),
        (alice, {"repo_id": "alice/shop", "private": True}, "WrongRepoError", "alice/shop is public"),
        (alice, {"repo_id": "noslash"}, "ValueError", "expected owner/name"),
        (alice, {"repo_id": "alice/shop"}, "AttributeError", "NoneType"),  # she may, and is saved next
        (reader, {"repo_id": "alice/shop", "dry_run": True}, "AttributeError", "NoneType"),
    ):
        found, sentence = json.loads(run_client(PUSH, env, json.dumps(options), patient=False))
        assert (found, words in sentence) == (kind, True), sentence
    assert list(hub.files("alice/shop")) == ["notes.md"]


@pytest.mark.parametrize("merged", [False, True])
def test_a_card_says_merged_of_what_the_folder_holds(merged, tmp_path):
    said = {}

    def card(record, **told):
        said.update(told)
        return "# Shop"

    if merged:  # as when the parts were loaded from a merged folder and are saved without merge=
        (tmp_path / "merged").mkdir()
    write_json(tmp_path / "pulse.json", {})
    commit = "0123456789" * 4
    record = ScorerRecord({"id": "owner/base", "revision": commit}, 9, 4, 0, 0.0, "?", 8, 8, {}, "")
    write_json(tmp_path / "scorer.json", asdict(record))
    parts = SimpleNamespace(pool=SimpleNamespace(item_ids=[]), folder=tmp_path)
    _write_card(parts, tmp_path, SimpleNamespace(recommender=card, dataset=None))
    facts = {"base_included": False, "base_revision": commit, "merged": merged, "plain_adapter": False}
    assert said == {"pool": 0, **facts}


@pytest.mark.parametrize("word", ["candidates", "recommender"])
def test_a_dry_run_needs_a_whole_name_too(word, tmp_path):
    with pytest.raises(ValueError, match="'noslash' is not a Hub repo id; expected owner/name"):
        publish(word, tmp_path, Publication("noslash", dry_run=True))


def test_a_metric_is_not_named_as_its_own_page(tmp_path):
    with pytest.raises(ValueError, match=r"alice/app: app\.py is the page"):
        publish("metric", tmp_path, Publication("alice/app", dry_run=True))


def test_a_card_asks_with_names_that_the_catalogue_has():
    titles = {"i1": "Norvik Kettle (2-Pack)", "i2": "Cork Tray", "i3": "i1", "i_4": "Soap [new]", "i5": "Cup"}
    cards = ModelCards(Path("nowhere"), "alice/shop")
    cards.__dict__["_items"] = [Item(item_id, title, title) for item_id, title in titles.items()]
    assert cards._named_items() == ["i1", "Cork Tray"]
    cards.__dict__["_items"] = cards._items[2:]
    assert cards._named_items() == ["i1", "Cup"]


def test_the_card_of_a_server_written_recommender_says_how_to_open_it():
    told = {"items": 1, "pool": 1, "systems": [], "comparisons": [], "worth": [], "audit": {"passed": True}}
    told |= {"protocol": {"users": 1, "negatives": 9, "sampling": "uniform", "split": "x", "synthetic": False}}
    told |= {
        "metadata": "",
        "name": "shop",
        "repo_id": "alice/shop",
        "license": None,
        "history": "[]",
        "adapter": True,
    }
    told |= {"shared_towers": True, "plain_adapter": True, "base": "owner/base", "base_subfolder": ""}
    told |= {"base_model_name": "owner/base", "base_included": False, "base_revision": "0123456789" * 4}
    for model in ("writer-8b", ""):
        code = re.findall(r"```python\n(.*?)```", render("recommender", server_model=model, **told), re.DOTALL)
        assert all(compile(snippet, "card", "exec") for snippet in code)
        assert ('ServerGenerator("writer-8b@http://' in code[0], "generator=writer" in code[0]) == (bool(model),) * 2
        assert 'from_pretrained("owner/base", revision="0123456789' in code[1]
