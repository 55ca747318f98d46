"""Push and pull against the loopback Hub: one commit or none, verified files, faults, hostile records."""

import errno
import json
from contextlib import suppress
from pathlib import Path

import pytest
from loopback_hub import DropAfter, DropBefore, FlipByte, Meanwhile, Status, Truncate, run_client

from pulse_hf.artifacts import ArtifactError, DiskFullError, read_tensors, write_tensors
from pulse_hf.cli.faults import known_fault
from pulse_hf.hub.files import CHECKSUMS, check_folder, list_files, read_seal, seal_folder
from pulse_hf.hub.refusals import is_passing
from pulse_hf.hub.transfer import _plain_errors, pull, push_folder

PUSH = """
    import json, sys
    from pathlib import Path
    from pulse_hf.hub.transfer import push_folder
    done = push_folder(Path(sys.argv[1]), "alice/shop", message="second")
    print(json.dumps([done.commit, [one.path for one in done.changed], list(done.deleted)]))
"""
CACHED = """
    import sys
    from huggingface_hub import snapshot_download
    from pulse_hf.hub.transfer import require_cached
    from pulse_hf.models.embedded import resolve_model
    name = sys.argv[1]
    try:
        require_cached(name)
    except ConnectionError as error:
        print("is not in the cache" in str(error))
        snapshot_download(*name.split("@")[:1], revision=name.split("@")[1])
    require_cached(name)
    print(resolve_model(name)[1]["revision"])
"""
PULL = """
    import sys
    from pulse_hf.artifacts import ArtifactError
    from pulse_hf.hub.transfer import pull
    try:
        print(pull("alice/shop"))
    except (ArtifactError, ConnectionError) as error:
        print(f"{type(error).__name__}: {error}")
"""


def shop(folder: Path, number: int = 1) -> Path:
    """A small folder of every kind of file."""
    import torch

    write_tensors(folder / "weights.safetensors", {"a": torch.full((1000,), float(number))})
    (folder / "pulse.json").write_text(json.dumps({"number": number}))
    (folder / "catalogue").mkdir(exist_ok=True)
    (folder / "catalogue" / "names.txt").write_text("one\ntwo\n")
    (folder / "README.md").write_text(f"---\nlicense: apache-2.0\n---\n# Shop {number}\n")
    seal_folder(folder, "recommender")
    return folder


def push(hub, folder, cache, user="alice"):
    return json.loads(run_client(PUSH, hub.environment(cache, user), folder, patient=False))


def contents(folder: Path) -> dict[str, bytes]:
    return {one.path: (folder / one.path).read_bytes() for one in list_files(folder)}


def in_hub(hub) -> dict[str, bytes]:
    return {name: data for name, data in hub.files("alice/shop").items() if name != ".gitattributes"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shop").mkdir()
    return shop(tmp_path / "shop")


def test_a_push_after_another_commit_than_it_was_made_from_is_refused(hub, folder, tmp_path):
    code = PUSH.replace('message="second")', "parent=sys.argv[2])")
    first, _, _ = push(hub, folder, tmp_path / "a")
    hub.commit("alice/shop", {"notes.md": b"somebody's"})
    (folder / "pulse.json").write_text('{"number": 3}')
    env = hub.environment(tmp_path / "a", "alice")
    with pytest.raises(RuntimeError, match="somebody else changed it meanwhile; nothing was pushed"):
        run_client(code, env, folder, first, patient=False)
    assert json.loads(run_client(code, env, folder, hub.commits("alice/shop")[0], patient=False))[0]


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EACCES, ArtifactError), (errno.EROFS, ArtifactError)]
)
def test_what_this_machine_refuses_is_no_silence_of_the_hub(number, kind):
    with pytest.raises(kind, match="alice/shop: .*cache"), _plain_errors("alice/shop", None):
        raise OSError(number, "refused", "/cache/file")
    with pytest.raises(ConnectionError), _plain_errors("alice/shop", None):
        raise OSError(errno.ECONNRESET, "lost")


def test_a_large_file_that_breaks_off_is_a_silence_and_another_runtime_error_is_a_bug():
    def raised(package):  # Xet raises from compiled code, so that the last frame of Python is the client's
        code = "def ask():\n    raise RuntimeError('Task error: CAS Client Error')"
        names = {"__name__": f"{package}.file_download"}
        exec(code, names)  # noqa: S102
        return names["ask"]

    with (
        pytest.raises(ConnectionError, match="alice/shop: RuntimeError: Task error"),
        _plain_errors("alice/shop", None),
    ):
        raised("huggingface_hub")()
    for package, code, passing in (("huggingface_hub", 5, True), ("torch", None, False)):
        with pytest.raises(RuntimeError) as caught:
            raised(package)()
        assert is_passing(caught.value) == passing
        assert (known_fault(caught.value) or (None,))[0] == code
    with pytest.raises(RuntimeError), _plain_errors("alice/shop", None):
        raised("torch")()


def test_a_model_that_is_only_named_is_found_in_the_cache_by_its_commit(hub, folder, tmp_path):
    (folder / "config.json").write_text('{"hidden_size": 8}')
    seal_folder(folder, "recommender")
    commit, _, _ = push(hub, folder, tmp_path / "a")
    fresh = hub.environment(tmp_path / "b")
    assert run_client(CACHED, fresh, f"alice/shop@{commit}").split() == ["True", commit]
    before = len(hub.requests)
    assert run_client(CACHED, fresh, f"alice/shop@{commit}").split() == [commit]
    assert len(hub.requests) == before  # a commit stays what it is: nobody is asked


def test_a_push_is_one_commit_a_second_one_none_and_what_is_gone_goes(hub, folder, tmp_path):
    commit, changed, deleted = push(hub, folder, tmp_path / "a")
    assert hub.commits("alice/shop")[0] == commit
    assert in_hub(hub) == contents(folder)
    assert push(hub, folder, tmp_path / "a") == [None, [], []]
    hub.commit("alice/shop", {"notes.md": b"a stranger's file"})
    (folder / "catalogue" / "names.txt").unlink()
    (folder / "pulse.json").write_text('{"number": 3}')
    seal_folder(folder, "recommender")
    before = len(hub.commits("alice/shop"))
    _, changed, deleted = push(hub, folder, tmp_path / "a")
    assert (sorted(changed), deleted) == ([CHECKSUMS, "pulse.json"], ["catalogue/names.txt"])
    assert len(hub.commits("alice/shop")) == before + 1
    assert in_hub(hub) == contents(folder) | {"notes.md": b"a stranger's file"}


def test_a_change_by_somebody_else_is_refused(hub, folder, tmp_path):
    push(hub, folder, tmp_path / "a")
    shop(folder, 2)
    hub.faults.add(
        Meanwhile(lambda: hub.commit("alice/shop", {"notes.md": b"theirs"})), method="POST", path="/commit/"
    )
    with pytest.raises(RuntimeError, match="somebody else changed it meanwhile"):
        push(hub, folder, tmp_path / "a")
    assert b'"number": 1' in in_hub(hub)["pulse.json"]
    push(hub, folder, tmp_path / "a")
    assert b'"number": 2' in in_hub(hub)["pulse.json"]


@pytest.mark.slow
def test_a_push_cut_at_any_request_leaves_the_old_repo_or_the_new_one(hub, folder, tmp_path):
    push(hub, folder, tmp_path / "a")
    old = in_hub(hub)
    shop(folder, 2)
    start = len(hub.requests)
    push(hub, folder, tmp_path / "a")
    new, requests = in_hub(hub), len(hub.requests) - start
    assert requests >= 5
    outcomes = []
    for effect in (DropBefore(), DropAfter()):
        for nth in range(1, requests + 1):
            hub.commit("alice/shop", old)
            hub.faults.add(effect, nth=nth, times=None)
            with suppress(RuntimeError):
                push(hub, folder, tmp_path / "a")
                outcomes.append("done")
            hub.faults.clear()
            assert in_hub(hub) in (old, new), f"{effect} at request {nth}"
    assert len(outcomes) < 2 * requests
    push(hub, folder, tmp_path / "a")
    assert in_hub(hub) == new


def test_files_come_back_whole_and_damage_on_the_way_is_mended_once_and_then_refused(hub, folder, tmp_path):
    push(hub, folder, tmp_path / "a")
    pulled = Path(run_client(PULL, patient=False, env=hub.environment(tmp_path / "b")).strip())
    assert {name: (pulled / name).read_bytes() for name in contents(folder) if name != "README.md"} == {
        name: data for name, data in contents(folder).items() if name != "README.md"
    }
    offline = hub.environment(tmp_path / "b") | {"HF_HUB_OFFLINE": "1"}
    start = len(hub.requests)
    assert run_client(PULL, patient=False, env=offline).strip() == str(pulled)
    assert len(hub.requests) == start
    full = "\n    import shutil\n    shutil.disk_usage = lambda _: type('Usage', (), {'free': 0})" + PULL
    assert run_client(full, patient=False, env=offline).strip() == str(pulled)  # nothing is to be fetched
    assert "0 are free here" in run_client(full, patient=False, env=hub.environment(tmp_path / "full"))
    assert "not in the cache" in run_client(
        PULL, patient=False, env=hub.environment(tmp_path / "none") | {"HF_HUB_OFFLINE": "1"}
    )
    for number, effect in enumerate((FlipByte(), Truncate(keep=100))):
        hub.faults.add(effect, method="GET", path="weights|/lfs|/objects|/storage|/cdn", times=1)
        done = run_client(PULL, patient=False, env=hub.environment(tmp_path / f"once{number}"))
        assert "Error" not in done, f"{effect}: {done}"
        hub.faults.clear()
    for number, path in enumerate(("pulse.json", "checksums.json", "/api/models/alice/shop")):
        busy = hub.faults.add(Status(503), path=path, times=2)
        done = run_client(PULL, patient=False, env=hub.environment(tmp_path / f"busy{number}"))
        assert (busy.hits, "Error" in done) == (2, False), f"{path}: {done}"
        hub.faults.clear()
    hub.faults.add(FlipByte(), method="GET", path="pulse.json", times=None)
    refused = run_client(PULL, patient=False, env=hub.environment(tmp_path / "always"))
    assert "ArtifactError" in refused
    assert "missing or damaged after fetching twice: pulse.json" in refused


def test_private_and_gated_repos_and_an_unknown_one_are_told_apart_and_no_token_is_shown(hub, folder, tmp_path):
    push(hub, folder, tmp_path / "a")
    hub.repo("alice/shop").private = True
    assert "is private and no token" in run_client(PULL, patient=False, env=hub.environment(tmp_path / "b"))
    assert "is private and no token" in run_client(PULL, patient=False, env=hub.environment(tmp_path / "b", "bob"))
    assert "Error" not in run_client(PULL, patient=False, env=hub.environment(tmp_path / "b", "alice"))
    hub.repo("alice/shop").private = False
    hub.repo("alice/shop").gated = "auto"
    gated = run_client(PULL, patient=False, env=hub.environment(tmp_path / "c", "bob"))
    assert "is gated: ask its owner" in gated
    with pytest.raises(RuntimeError) as refused:
        push(hub, shop(folder, 5), tmp_path / "a", user="bob")
    hub.faults.add(Status(500), times=None)
    with pytest.raises(RuntimeError) as broken:
        push(hub, shop(folder, 5), tmp_path / "a")
    for text in (gated, str(refused.value), str(broken.value)):
        assert hub.token("bob") not in text
        assert hub.token("alice") not in text


HOSTILE_NAMES = (
    "../outside.json",
    "/etc/passwd",
    "a/../../b.json",
    "a\\b.json",
    ".git/config.json",
    "x\n.json",
    "a//b",
)


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, "weights.pkl", "run.sh", "model.bin"])
def test_a_record_that_names_what_no_folder_holds_is_refused(folder, name):
    record = json.loads((folder / CHECKSUMS).read_text())
    record["files"][name] = {"size": 1, "sha256": "0" * 64}
    (folder / CHECKSUMS).write_text(json.dumps(record))
    with pytest.raises(ArtifactError, match="never published"):
        read_seal(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(format_version=99),
        lambda record: record.update(files=[]),
        lambda record: record.pop("kind"),
        lambda record: record["files"].update(x={"size": "much"}),
        lambda record: record["files"].update({"pulse.json": {"size": -1, "sha256": ""}}),
    ],
)
def test_a_damaged_record_is_refused(folder, change):
    record = json.loads((folder / CHECKSUMS).read_text())
    change(record)
    (folder / CHECKSUMS).write_text(json.dumps(record))
    with pytest.raises(ArtifactError):
        read_seal(folder)


def test_huge_sizes_and_repos_of_others_are_refused_before_anything_is_fetched(hub, folder, tmp_path):
    record = json.loads((folder / CHECKSUMS).read_text())
    record["files"]["weights.safetensors"]["size"] = 10**15
    hub.create_repo("alice/shop", contents(folder) | {CHECKSUMS: json.dumps(record).encode()})
    assert "Nothing was fetched" in run_client(PULL, patient=False, env=hub.environment(tmp_path / "a"))
    assert not any("weights" in str(one.path) and one.method == "GET" for one in hub.requests)
    hub.create_repo("alice/other", {"model.bin": b"x"})
    other = run_client(PULL.replace("alice/shop", "alice/other"), hub.environment(tmp_path / "a"))
    assert "was not published by this package" in other


def test_code_and_pickles_are_never_fetched(hub, folder, tmp_path):
    planted = {"modeling_evil.py": b"raise SystemExit('ran')", "weights.bin": b"\x80\x04evil", "setup.cfg": b"x"}
    hub.create_repo("alice/shop", contents(folder) | planted)
    pulled = Path(run_client(PULL, patient=False, env=hub.environment(tmp_path / "a")).strip())
    found = {path.relative_to(pulled).as_posix() for path in pulled.rglob("*") if path.is_file()}
    assert found == contents(folder).keys() - {"README.md"}  # a card is not sealed


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("weights.bin", b"\0"),
        ("model.pkl", b"\x80\x04"),
        ("weights.safetensors", b"PK\x03\x04zip"),
        ("pickled.safetensors", b"\x80\x04\x95\x00\x00\x00\x00\x00{}"),
        ("empty.safetensors", b""),
        ("table.parquet", b"not parquet"),
        ("picture.png", b"GIF89a"),
        ("training_args.json", b"\x80\x05pickle"),
        ("tool.py", b"print()"),
        ("a b.json", b"{}"),
    ],
)
def test_what_may_not_leave_is_named_and_stays(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "fine.json").write_text("{}")
    with pytest.raises(ArtifactError) as error:
        list_files(tmp_path)
    assert name in str(error.value)
    assert "fine" not in str(error.value)


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580])
def test_tensors_whose_header_has_the_length_of_a_pickles_first_bytes_are_no_pickle(tmp_path, length):
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    content = length.to_bytes(8, "little") + header.ljust(length) + b"\0" * 4
    (tmp_path / "model.safetensors").write_bytes(content)
    assert read_tensors(tmp_path / "model.safetensors")["a"].tolist() == [0.0]
    assert [one.path for one in list_files(tmp_path)] == ["model.safetensors"]


@pytest.mark.parametrize("name", ["noslash", "a/b/c", "bad name/x", "../x", ""])
def test_a_name_that_is_no_repos_is_refused_before_anything_is_sent(folder, name):
    for act in (lambda: push_folder(folder, name, dry_run=True), lambda: pull(name)):
        with pytest.raises(ValueError, match="expected owner/name"):
            act()


def test_links_are_not_followed_and_rubbish_is_left_out(tmp_path):
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "shop"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "__pycache__" / "x.pyc").write_bytes(b"x")
    (folder / ".lock").write_text("")
    (folder / "fine.json").write_text("{}")
    assert [one.path for one in list_files(folder)] == ["fine.json"]
    (folder / "link.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactError, match="a link"):
        list_files(folder)


def test_every_flipped_byte_of_a_sealed_folder_is_found(folder):
    for one in read_seal(folder).files:
        whole = (folder / one.path).read_bytes()
        for place in {0, len(whole) // 2, len(whole) - 1}:
            damaged = bytearray(whole)
            damaged[place] ^= 1
            (folder / one.path).write_bytes(bytes(damaged))
            with pytest.raises(ArtifactError, match="damaged"):
                check_folder(folder)
        (folder / one.path).write_bytes(whole)
    check_folder(folder)
