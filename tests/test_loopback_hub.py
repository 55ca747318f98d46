"""The loopback Hub, seen by the real clients: each snippet runs in a process of its own over a socket."""

import json

import pytest
from loopback_hub import LoopbackHub, run_client

BIG = bytes(range(256)) * 64  # 16 KiB with zero bytes: goes to LFS whatever its name


@pytest.fixture
def env(hub, tmp_path):
    return hub.environment(tmp_path / "cache", "alice")


def test_a_folder_goes_up_in_one_commit_and_comes_down_unchanged(hub, env, tmp_path):
    folder = tmp_path / "model"
    (folder / "adapter").mkdir(parents=True)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "empty.txt").write_text("")
    (folder / "adapter" / "weights.safetensors").write_bytes(BIG)
    (folder / "adapter" / "ünïcode name.bin").write_bytes(BIG[::-1])
    out = run_client(
        """
        import json, sys
        from huggingface_hub import HfApi, snapshot_download
        api, (folder,) = HfApi(), sys.argv[1:]
        assert api.whoami()["name"] == "alice"
        url = api.create_repo("alice/x", private=True)
        assert (url.repo_id, url.repo_type) == ("alice/x", "model"), url
        assert api.create_repo("x", exist_ok=True).repo_id == "alice/x"
        assert api.repo_exists("alice/x") and not api.repo_exists("alice/y")
        commit = api.upload_folder(repo_id="alice/x", folder_path=folder, commit_message="first")
        same = api.upload_folder(repo_id="alice/x", folder_path=folder, commit_message="again")
        info = api.model_info("alice/x", files_metadata=True)
        assert info.private and info.sha == commit.oid == same.oid
        tree = list(api.list_repo_tree("alice/x", recursive=True))
        down = snapshot_download("alice/x")
        check = api.verify_repo_checksums("alice/x")
        print(json.dumps(dict(
            commit=commit.oid, down=down, siblings={s.rfilename: [s.size, bool(s.lfs)] for s in info.siblings},
            tree=[t.path for t in tree], commits=[c.title for c in api.list_repo_commits("alice/x")],
            checked=check.checked_count, wrong=check.mismatches + check.missing_paths + check.extra_paths,
        )))
        """,
        env,
        folder,
    )
    seen = json.loads(out)
    sent = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert hub.files("alice/x") == sent
    assert hub.commits("alice/x")[0] == seen["commit"]
    assert len(hub.commits("alice/x")) == 2
    assert seen["commits"] == ["first", "initial commit"]
    from pathlib import Path
    assert {path: (Path(seen["down"]) / path).read_bytes() for path in sent} == sent
    assert {path: [len(content), path.startswith("adapter/")] for path, content in sent.items()} == {
        path: known for path, known in seen["siblings"].items() if path != ".gitattributes"
    }
    assert "adapter" in seen["tree"]
    assert (seen["checked"], seen["wrong"]) == (5, [])
