"""Injected faults, seen by the real clients."""

import pytest
from loopback_hub import DropAfter, DropBefore, FlipByte, Meanwhile, Status, Truncate, run_client

BIG = bytes(range(256)) * 64  # has zero bytes, so it goes to LFS
PUSH = """
    import sys
    from huggingface_hub import HfApi
    HfApi().create_repo("alice/x", exist_ok=True)
    HfApi().upload_folder(repo_id="alice/x", folder_path=sys.argv[1])
"""
GET = """
    from huggingface_hub import hf_hub_download
    with open(hf_hub_download("alice/x", "big.bin"), "rb") as file:
        assert file.read() == bytes(range(256)) * 64
"""


@pytest.fixture
def env(hub, tmp_path):
    return hub.environment(tmp_path / "cache", "alice")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Hello")
    (folder / "big.bin").write_bytes(BIG)
    return folder


@pytest.fixture
def pushed(hub, env, folder):
    run_client(PUSH, env, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("effect", [DropBefore(), DropAfter()])
def test_a_hub_that_dies_at_any_request_of_a_push_shows_all_of_it_or_nothing(hub, env, folder, pushed, effect):
    length = len(hub.requests)
    assert [r.path.split("/")[-2] for r in hub.requests][-1] == "commit"
    outcomes = []
    for nth in range(1, length + 1):
        hub.repos.delete(hub.repo("alice/x"))
        fault = hub.faults.add(effect, nth=nth, times=None)
        with pytest.raises(RuntimeError):
            run_client(PUSH, env, folder, patient=False)
        hub.faults.clear()
        assert fault.hits
        known = ("model", "alice/x") in hub.repos.all
        outcomes.append(hub.files("alice/x") if known else None)
        if not known:
            hub.create_repo("alice/x")
    created_at = 1 if isinstance(effect, DropBefore) else 0
    landed = [pushed] if isinstance(effect, DropAfter) else [{}]
    assert outcomes == [None] * created_at + [{}] * (length - 1 - created_at) + landed


def test_statuses_are_retried_where_the_client_retries(hub, env, pushed):
    busy = hub.faults.add(Status(503, retry_after=0), path="/tree/", times=2)
    slow = hub.faults.add(Status(429, retry_after=0), path="/downloads/")
    down = hub.faults.add(Status(500), path="/api/models/alice/x$")
    run_client(
        """
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
        snapshot_download("alice/x")
        try:
            HfApi().model_info("alice/x")
            raise SystemExit("500 was not seen")
        except HfHubHTTPError as error:
            assert error.response.status_code == 500
        """,
        env,
        patient=False,
    )
    assert (busy.hits, slow.hits, down.hits) == (2, 1, 1)
    assert [r.status for r in hub.requests if r.fault] == [503, 503, 429, 500]


def test_a_truncated_body_is_noticed_and_a_flipped_byte_is_not(hub, env, pushed, tmp_path):
    fault = hub.faults.add(Truncate(1000), path="/downloads/")
    run_client(GET, env, patient=False)
    assert fault.hits == 1
    hub.faults.add(Truncate(0), path="/downloads/", times=None)
    with pytest.raises(RuntimeError, match="RemoteProtocolError"):
        run_client(GET, hub.environment(tmp_path / "cache-2", "alice"), patient=False)
    hub.faults.clear()
    hub.faults.add(FlipByte(300), path="/downloads/")
    run_client(
        """
        from huggingface_hub import HfApi, snapshot_download
        with open(snapshot_download("alice/x") + "/big.bin", "rb") as file:
            wrong = [i for i, (a, b) in enumerate(zip(file.read(), bytes(range(256)) * 64)) if a != b]
        assert wrong == [300], wrong
        assert [m["path"] for m in HfApi().verify_repo_checksums("alice/x").mismatches] == ["big.bin"]
        """,
        hub.environment(tmp_path / "cache-3", "alice"),
    )


def test_a_branch_that_moves_in_between(hub, env, pushed):
    change = """
        import sys
        from huggingface_hub import HfApi
        api = HfApi()
        parent = api.model_info("alice/x").sha if sys.argv[1] == "guarded" else None
        api.upload_file(path_or_fileobj=b"mine", path_in_repo="mine.txt", repo_id="alice/x", parent_commit=parent)
    """
    hub.faults.add(Meanwhile(lambda: hub.commit("alice/x", {"theirs.txt": b"1"})), path="/commit/")
    with pytest.raises(RuntimeError, match="412"):
        run_client(change, env, "guarded")
    assert set(hub.files("alice/x")) == {*pushed, "theirs.txt"}
    hub.faults.add(Meanwhile(lambda: hub.commit("alice/x", {"theirs.txt": b"2"})), path="/commit/")
    run_client(change, env, "unguarded")
    assert hub.files("alice/x") == pushed | {"theirs.txt": b"2", "mine.txt": b"mine"}


def test_requests_are_counted_from_one(hub):
    with pytest.raises(ValueError, match="counted from 1"):
        hub.faults.add(DropBefore(), nth=0)
