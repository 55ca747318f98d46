"""A loaded recommender on its way to the Hub: who is refused before anything is saved, and what its card says."""

import json
from types import SimpleNamespace

import pytest
from loopback_hub import run_client

from pulse_hf.artifacts import write_json
from pulse_hf.saving import _write_card

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
    parts = SimpleNamespace(pool=SimpleNamespace(item_ids=[]))
    _write_card(parts, tmp_path, SimpleNamespace(recommender=card, dataset=None))
    assert said == {"pool": 0, "base_included": False, "merged": merged, "plain_adapter": False}
