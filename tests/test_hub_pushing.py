"""What a push may do to a repo and what it may not, who is told what, and by which exit code."""

import json
import subprocess
import sys

import pytest
from loopback_hub import Meanwhile, run_client
from test_transfer import shop

from pulse_hf.artifacts import ArtifactError
from pulse_hf.hub.files import check_folder, copy_sealed, seal_folder

# argv: folder, repo, options of push_folder as JSON
PUSH = """
    import json, sys
    from pathlib import Path
    from pulse_hf.hub.transfer import push_folder
    try:
        done = push_folder(Path(sys.argv[1]), sys.argv[2], **json.loads(sys.argv[3]))
        print(json.dumps([done.commit, sorted(one.path for one in done.changed), list(done.deleted)]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""
# argv: word, repo; the run is nowhere, so whatever is made of it fails
PUBLISH = """
    import json, sys
    from pathlib import Path
    from pulse_hf.publish import Publication, publish
    try:
        done = publish(sys.argv[1], Path("nowhere"), Publication(sys.argv[2], **json.loads(sys.argv[3])))
        print(json.dumps([done.commit, sorted(one.path for one in done.changed), list(done.deleted)]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shop").mkdir()
    return shop(tmp_path / "shop")


@pytest.fixture
def alice(hub, tmp_path):
    return hub.environment(tmp_path / "alice", "alice")


def run(code, env, first, repo="alice/shop", /, **options):
    return json.loads(run_client(code, env, first, repo, json.dumps(options), patient=False))


def pulse(env, *arguments):
    command = [sys.executable, "-m", "pulse_hf.cli.main", *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


def test_another_kind_of_artefact_takes_nothing_away(hub, alice, folder):
    run(PUSH, alice, folder)
    before = hub.files("alice/shop"), hub.commits("alice/shop")
    (folder / "pulse.json").unlink()
    seal_folder(folder, "thought-space")
    kind, sentence = run(PUSH, alice, folder)
    assert kind == "WrongRepoError"
    assert "alice/shop holds 'recommender' (by its checksums.json); expected 'thought-space'" in sentence
    assert "name another repo" in sentence
    (folder / "checksums.json").unlink()
    assert run(PUSH, alice, folder)[0] == "WrongRepoError"
    assert (hub.files("alice/shop"), hub.commits("alice/shop")) == before


def test_private_is_never_published_into_a_public_repo(hub, alice, folder):
    run(PUSH, alice, folder)
    before = hub.commits("alice/shop")
    shop(folder, 2)
    kind, sentence = run(PUSH, alice, folder, private=True)
    assert (kind, "alice/shop is public" in sentence) == ("WrongRepoError", True)
    assert run(PUBLISH, alice, "sequential", private=True)[0] == "WrongRepoError"  # before anything is made
    assert hub.commits("alice/shop") == before
    for number in (1, 2):
        assert run(PUSH, alice, shop(folder, number), "alice/hidden", private=True)[0] in hub.commits("alice/hidden")
    assert hub.repo("alice/hidden").private


def test_a_new_branch_begins_where_main_is(hub, alice, folder):
    first = run(PUSH, alice, folder, "alice/new", revision="v1")[0]
    assert hub.commits("alice/new", revision="v1")[0] == first
    assert hub.files("alice/new") == {}
    assert hub.files("alice/new", revision="v1").keys() >= {"pulse.json", "checksums.json"}
    metric = run(PUBLISH, alice, "metric", "alice/metric")[0]
    hub.commit("alice/metric", {"README.md": b"---\ntitle: x\nmodels: [a/b]\n---\n"}, repo_type="space")
    branch = run(PUBLISH, alice, "metric", "alice/metric", revision="v2")[0]
    commits = hub.commits("alice/metric", "space", "v2")
    assert (commits[0], commits[2]) == (branch, metric)
    assert b"models:" in hub.files("alice/metric", "space", "v2")["README.md"]


def test_who_may_not_write_is_told_so_before_anything_is_made(hub, alice, folder, tmp_path):
    run(PUSH, alice, folder)
    shop(folder, 2)
    nobody, bob = hub.environment(tmp_path / "n"), hub.environment(tmp_path / "b", "bob")
    reader = nobody | {"HF_TOKEN": hub.token("alice", "read")}
    for env, made_for, words in (
        (nobody, "alice/shop", "nobody is logged in who may write"),
        (nobody, "alice/absent", "nobody is logged in who may write"),
        (bob, "alice/shop", "this token may not write"),
        (reader, "alice/absent", "this token may not write"),
    ):
        for code, repo in ((PUBLISH, made_for), (PUSH, "alice/shop")):
            kind, sentence = run(code, env, folder if code is PUSH else "sequential", repo)
            assert kind == "NoAccessError", sentence
            assert f"{words} to {repo}" in sentence
            assert env.get("HF_TOKEN", "hf_") not in sentence
    assert run(PUBLISH, alice, "sequential")[0] == "ArtifactError"  # she may; it is the run that is nowhere


def test_a_refusal_a_silence_and_an_overtaken_push_have_exit_codes_of_their_own(hub, alice, folder, tmp_path):
    run(PUSH, alice, folder)
    hub.create_repo("alice/gated", {"checksums.json": b"{}"}, gated="auto")
    bob = hub.environment(tmp_path / "b", "bob")
    away = bob | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    for env, arguments, code, sentence in (
        (bob, ("pull", "alice/nothing"), 2, "does not exist, or is private"),
        (bob, ("pull", "alice/gated"), 2, "is gated: ask its owner"),
        (bob, ("pull", "alice/shop", "--revision", "v9"), 2, "has no such revision"),
        (bob | {"HF_TOKEN": "hf_unknown"}, ("pull", "alice/shop"), 2, "may not be read with this token"),
        (bob, ("push", "metric", "alice/shop"), 2, "this token may not write to alice/shop"),
        (away, ("pull", "alice/shop"), 5, "out of reach"),
    ):
        done = pulse(env, *arguments)
        assert (done.returncode, sentence in done.stderr) == (code, True), done.stderr
        assert "Traceback" not in done.stderr
    assert pulse(alice, "push", "metric", "alice/metric").returncode == 0
    theirs = Meanwhile(lambda: hub.commit("alice/metric", {"notes.md": b"theirs"}, repo_type="space"))
    hub.commit("alice/metric", {"README.md": b"---\ntitle: x\n---\n"}, repo_type="space")
    hub.faults.add(theirs, method="POST", path="/commit/")
    done = pulse(alice, "push", "metric", "alice/metric")
    assert (done.returncode, "Run the same command again" in done.stderr) == (3, True), done.stderr


def test_a_base_model_that_nobody_answers_for_is_no_mistake_of_the_user(alice):
    code = """
        from pulse_hf.models.embedded import resolve_model
        try:
            resolve_model("bob/base")
        except Exception as error:
            print(type(error).__name__, error)
    """
    told = run_client(code, alice | {"HF_ENDPOINT": "http://127.0.0.1:9"}, patient=False)
    assert told.startswith("ConnectionError bob/base@main is neither a folder, nor cached")


def test_what_only_the_earlier_download_had_goes(hub, alice, folder, tmp_path):
    (folder / "merged").mkdir()
    (folder / "merged" / "config.json").write_text("{}")
    seal_folder(folder, "recommender")
    run(PUSH, alice, folder)
    target = tmp_path / "here"
    assert pulse(alice, "pull", "alice/shop", "--to", target).returncode == 0
    (target / "mine.txt").write_text("mine")
    (folder / "merged" / "config.json").unlink()
    seal_folder(folder, "recommender")
    run(PUSH, alice, folder)
    assert pulse(alice, "pull", "alice/shop", "--to", target).returncode == 2
    assert pulse(alice, "pull", "alice/shop", "--to", target, "--force").returncode == 0
    assert not (target / "merged").exists()
    assert (target / "mine.txt").read_text() == "mine"
    check_folder(target)


def test_weights_that_the_seal_does_not_name_are_refused(folder, tmp_path):
    copy_sealed(folder, tmp_path / "copy")
    check_folder(tmp_path / "copy")
    (tmp_path / "copy" / "merged").mkdir()
    with pytest.raises(ArtifactError, match=r"has merged/, which its checksums.json does not name"):
        check_folder(tmp_path / "copy")


def test_a_metric_names_its_repo_and_takes_away_what_an_earlier_version_had(hub, alice, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "page.py").write_text("")
    seal_folder(tmp_path / "old", "metric")
    run(PUSH, alice, tmp_path / "old", "alice/metric", repo_type="space", code=True)
    _, changed, deleted = run(PUBLISH, alice, "metric", "alice/metric")
    assert ({"metric.py", "checksums.json"} <= set(changed), deleted) == (True, ["page.py"])
    card = hub.files("alice/metric", "space")["README.md"].decode()
    assert 'evaluate.load("alice/metric")' in card
    assert "OWNER" not in card
    owners = card.replace("sdk: gradio", "hf_oauth: true\nsdk: gradio")
    hub.commit("alice/metric", {"README.md": owners.encode()}, repo_type="space")
    run(PUBLISH, alice, "metric", "alice/metric")
    kept = hub.files("alice/metric", "space")["README.md"].decode()
    assert kept == card.replace("\n---\n", "\nhf_oauth: true\n---\n", 1)
    assert run(PUBLISH, alice, "metric", "alice/metric") == [None, [], []]
