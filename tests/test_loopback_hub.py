"""The loopback Hub, seen by the real clients: each snippet runs in a process of its own over a socket."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from loopback_hub import run_client

BIG = bytes(range(256)) * 64  # 16 KiB with zero bytes: goes to LFS whatever its name


@pytest.fixture
def env(hub, tmp_path):
    return hub.environment(tmp_path / "cache", "alice")


@pytest.fixture
def folder(tmp_path):
    """A folder with small texts, an empty file, two large files and a name outside ASCII."""
    folder = tmp_path / "model"
    (folder / "adapter").mkdir(parents=True)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "empty.txt").write_text("")
    (folder / "adapter" / "weights.safetensors").write_bytes(BIG)
    (folder / "adapter" / "ünïcode name.bin").write_bytes(BIG[::-1])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_goes_up_in_one_commit_and_comes_down_unchanged(hub, env, folder):
    out = run_client(
        """
        import json, sys
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.utils.sha import git_hash
        api, (folder,) = HfApi(), sys.argv[1:]
        assert api.whoami()["name"] == "alice"
        url = api.create_repo("alice/x", private=True)
        assert (url.repo_id, url.repo_type) == ("alice/x", "model"), url
        assert api.create_repo("x", exist_ok=True).repo_id == "alice/x"
        assert api.repo_exists("alice/x") and not api.repo_exists("alice/y") and not api.repo_exists("y")
        commit = api.upload_folder(repo_id="alice/x", folder_path=folder, commit_message="first")
        same = api.upload_folder(repo_id="alice/x", folder_path=folder, commit_message="again")
        info = api.model_info("alice/x", files_metadata=True)
        assert info.private and info.sha == commit.oid == same.oid
        pointer = "version https://git-lfs.github.com/spec/v1\\noid sha256:%s\\nsize %d\\n"
        for sibling in info.siblings:
            if sibling.lfs:
                content = (pointer % (sibling.lfs.sha256, sibling.size)).encode()
                assert (sibling.blob_id, sibling.lfs.pointer_size) == (git_hash(content), len(content))
        check_at = snapshot_download("alice/x")
        check = api.verify_repo_checksums("alice/x")
        print(json.dumps(dict(
            commit=commit.oid, down=check_at, siblings={s.rfilename: [s.size, bool(s.lfs)] for s in info.siblings},
            tree=[t.path for t in api.list_repo_tree("alice/x", recursive=True)],
            top=[t.path for t in api.list_repo_tree("alice/x")],
            commits=[c.title for c in api.list_repo_commits("alice/x")],
            checked=check.checked_count, wrong=check.mismatches + check.missing_paths + check.extra_paths,
        )))
        """,
        env,
        folder,
    )
    seen, sent = json.loads(out), contents(folder)
    assert hub.files("alice/x") == sent
    assert hub.commits("alice/x")[0] == seen["commit"]
    assert seen["commits"] == ["first", "initial commit"]
    assert len(hub.commits("alice/x")) == 2
    down = Path(seen["down"])
    assert {path: (down / path).read_bytes() for path in sent} == sent
    assert (
        seen["siblings"].items()
        > {path: [len(content), path.startswith("adapter/")] for path, content in sent.items()}.items()
    )
    assert seen["top"] == [".gitattributes", "adapter", "config.json", "empty.txt"]
    assert set(seen["tree"]) == {".gitattributes", "adapter", *sent}
    assert (seen["checked"], seen["wrong"]) == (5, [])
    assert {r.path.split("/")[1] for r in hub.requests if r.method == "PUT"} == {"uploads"}


def test_datasets_and_spaces_are_repos_of_their_own(hub, env):
    run_client(
        """
        from huggingface_hub import HfApi, hf_hub_download
        api = HfApi()
        for repo_type in ("model", "dataset", "space"):
            api.create_repo("alice/x", repo_type=repo_type, space_sdk="gradio" if repo_type == "space" else None)
            for path, content in {"own.txt": repo_type.encode(), "large.bin": repo_type.encode() * 9}.items():
                api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id="alice/x", repo_type=repo_type)
                with open(hf_hub_download("alice/x", path, repo_type=repo_type), "rb") as file:
                    assert file.read() == content
            info = api.repo_info("alice/x", repo_type=repo_type)
            assert {"own.txt", "large.bin"} < {s.rfilename for s in info.siblings}
            assert api.file_exists("alice/x", "own.txt", repo_type=repo_type)
            assert not api.file_exists("alice/x", "other.txt", repo_type=repo_type)
        assert api.space_info("alice/x").sdk == "gradio"
        api.delete_repo("alice/x", repo_type="dataset")
        assert not api.repo_exists("alice/x", repo_type="dataset") and api.repo_exists("alice/x", repo_type="space")
        api.delete_repo("alice/x", repo_type="dataset", missing_ok=True)
        """,
        env,
    )
    assert hub.files("alice/x", "space")["own.txt"] == b"space"


def test_revisions(hub, env):
    first = hub.create_repo("alice/x", {"a.txt": b"1", "folder/b.txt": b"1", "folder/c.txt": b"1"})
    hub.page_size = 2
    run_client(
        """
        import sys
        from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
        from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RevisionNotFoundError
        api, first = HfApi(), sys.argv[1]

        def text(revision, path="a.txt"):
            with open(api.hf_hub_download("alice/x", path, revision=revision)) as file:
                return file.read()

        api.create_tag("alice/x", tag="v1", tag_message="one")
        api.create_branch("alice/x", branch="try/out", revision="v1")
        api.create_branch("alice/x", branch="try/out", exist_ok=True)
        add = lambda path, content: CommitOperationAdd(path, content)
        made = api.create_commit("alice/x", operations=[
            add("a.txt", b"2"), CommitOperationDelete("folder/"), CommitOperationCopy("a.txt", "copy.txt"),
        ], commit_message="second", commit_description="why", revision="try/out", parent_commit=first)
        assert [text(r) for r in ("main", "v1", first, "try/out", made.oid)] == ["1", "1", "1", "2", "2"]
        assert text("try/out", "copy.txt") == "1"
        assert api.list_repo_files("alice/x", revision="try/out") == [".gitattributes", "a.txt", "copy.txt"]
        paths = api.get_paths_info("alice/x", ["a.txt", "folder", "no"], revision="v1", expand=True)
        assert [(p.path, p.last_commit.oid) for p in paths] == [("a.txt", first), ("folder", first)], paths
        inside = [f.path for f in api.list_repo_tree("alice/x", "folder", revision="v1")]
        assert inside == ["folder/b.txt", "folder/c.txt"]
        titles = [c.title for c in api.list_repo_commits("alice/x", revision="try/out")]
        assert titles == ["second", "Change 3 files", "initial commit"], titles
        refs = api.list_repo_refs("alice/x")
        assert {b.name: b.target_commit for b in refs.branches} == {"main": first, "try/out": made.oid}
        assert [(t.name, t.ref) for t in refs.tags] == [("v1", "refs/tags/v1")]

        def refused(error, function, *args, **kwargs):
            try:
                function(*args, **kwargs)
            except error as caught:
                return getattr(caught.response, "status_code", None)
            raise AssertionError(f"{function} was not refused")

        late = dict(commit_message="late", revision="try/out", parent_commit=first)
        assert refused(HfHubHTTPError, api.create_commit, "alice/x", operations=[add("b.txt", b"")], **late) == 412
        assert refused(HfHubHTTPError, api.create_branch, "alice/x", branch="try/out") == 409
        assert refused(HfHubHTTPError, api.create_tag, "alice/x", tag="v1") == 409
        assert refused(RevisionNotFoundError, api.model_info, "alice/x", revision="v2") == 404
        assert refused(RevisionNotFoundError, api.hf_hub_download, "alice/x", "a.txt", revision="v2") == 404
        assert refused(RemoteEntryNotFoundError, api.hf_hub_download, "alice/x", "b.txt", revision="v1") == 404
        assert refused(RemoteEntryNotFoundError, lambda: list(api.list_repo_tree("alice/x", "no"))) == 404
        assert refused(RemoteEntryNotFoundError, api.delete_file, "no.txt", "alice/x") == 404
        api.delete_tag("alice/x", tag="v1")
        api.delete_branch("alice/x", branch="try/out")
        assert refused(HfHubHTTPError, api.delete_branch, "alice/x", branch="main") == 403
        assert [b.name for b in api.list_repo_refs("alice/x").branches] == ["main"]
        """,
        env,
        first,
    )
    assert hub.commits("alice/x")[0] == first


def test_who_may_do_what(hub, env, tmp_path):
    for repo_id, access in {"alice/open": {}, "alice/own": {"private": True}, "alice/gate": {"gated": "auto"}}.items():
        hub.create_repo(repo_id, {"a.txt": b"1"}, **access)
    asking = """
        import json, sys
        from huggingface_hub import HfApi
        api, answers = HfApi(), {}
        for repo in ("alice/open", "alice/own", "alice/gate"):
            for name, call in {
                "info": lambda: api.model_info(repo),
                "get": lambda: api.hf_hub_download(repo, "a.txt", force_download=True),
                "put": lambda: api.upload_file(path_or_fileobj=b"2", path_in_repo="b.txt", repo_id=repo),
                "settings": lambda: api.update_repo_settings(repo, gated="auto" if "gate" in repo else False),
            }.items():
                try:
                    call()
                    answers[repo.split("/")[1] + " " + name] = "yes"
                except Exception as error:
                    while error.__cause__ and not hasattr(error, "response"):
                        error = error.__cause__
                    answers[repo.split("/")[1] + " " + name] = f"{type(error).__name__} {error.response.status_code}"
        print(json.dumps(answers))
    """
    missing, gated, hub_error = "RepositoryNotFoundError 404", "GatedRepoError", "HfHubHTTPError"

    def ask(user, role="write"):
        env = hub.environment(tmp_path / f"cache-{user}", user)
        return json.loads(run_client(asking, env | ({"HF_TOKEN": hub.token(user, role)} if user else {})))

    calls = ("info", "get", "put", "settings")

    def expected(**answers):
        return {f"{repo} {call}": text for repo, row in answers.items() for call, text in zip(calls, row, strict=True)}

    refused = f"{hub_error} 403"
    assert ask("alice") == expected(open=["yes"] * 4, own=["yes"] * 4, gate=["yes"] * 4)
    assert ask("alice", "read") == expected(
        open=["yes", "yes", refused, refused],
        own=["yes", "yes", refused, refused],
        gate=["yes", "yes", refused, refused],
    )
    stranger = {"open": ["yes", "yes", refused, refused], "own": [missing] * 4}
    assert ask("bob") == expected(**stranger, gate=["yes", f"{gated} 403", refused, refused])
    hub.repo("alice/gate").readers.add("bob")
    assert ask("bob") == expected(**stranger, gate=["yes", "yes", refused, refused])
    nobody = "RepositoryNotFoundError 401"
    assert ask(None) == expected(
        open=["yes", "yes", nobody, nobody], own=[missing] * 4, gate=["yes", f"{gated} 401", nobody, nobody]
    )
    run_client(
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
        for token, repo, status in (("hf_no", "bob/x", 401), (None, "alice/x", 403), (False, "alice/x", 401)):
            for call in (lambda: HfApi(token=token).create_repo(repo), lambda: HfApi(token="hf_no").whoami()):
                try:
                    call()
                    raise SystemExit(f"{token} {repo} was let through")
                except HfHubHTTPError as error:
                    assert error.response.status_code in (status, 401), error
        """,
        hub.environment(tmp_path / "cache-bob", "bob"),
    )
    assert not any(repo_id.endswith("/x") for _, repo_id in hub.repos.all)


def test_metadata_is_checked_before_the_upload_and_again_at_the_commit(hub, env):
    wrong = {
        "model": [
            "license: my-own",
            "language: no",
            "base_model: /tmp/base",
            "datasets: [a b]",
            "widget: hello",
            "license: mit\nlicense: mit",
            "a: [",
            "model-index: [{name: x, results: [{task: {type: t}, dataset: {name: d, type: d},"
            " metrics: [{type: m}]}]}]",
            "model-index: [{name: x, results: [{task: {type: t}, dataset: {name: d, type: 'a b'},"
            " metrics: [{type: m, value: 1}]}]}]",
        ],
        "dataset": ["configs: {a: b}", "configs: [{data_files: a}]", "tags: a"],
        "space": ["sdk: flask", "sdk: gradio\nsdk_version: 6.3", "sdk: gradio\ncolorFrom: black", "title: no sdk"],
    }
    right = {
        "model": "license: other\nlicense_name: mine\nbase_model: [a/b, c]\nmodel-index: [{name: x, results: [{task:"
        " {type: t}, dataset: {name: d, type: a/d}, metrics: [{type: m, value: 0.5}]}]}]",
        "dataset": "license: mit\nlanguage: [en, de]\nconfigs: [{config_name: a, data_files: a/*, default: true}]",
        "space": "sdk: gradio\nsdk_version: 6.31.0\ncolorFrom: red\nshort_description: Short\nmodels: [a/b]",
    }
    run_client(
        """
        import json, sys, warnings
        from huggingface_hub import HfApi
        api, wrong, right = HfApi(), *map(json.loads, sys.argv[1:])

        def push(metadata):
            content = f"---\\n{metadata}\\n---\\n# Hello".encode()
            api.upload_file(path_or_fileobj=content, path_in_repo="README.md", repo_id="alice/x", repo_type=kind)

        for kind, cards in wrong.items():
            api.create_repo("alice/x", repo_type=kind, space_sdk="gradio" if kind == "space" else None)
            check = HfApi._validate_yaml
            for card in cards:
                for HfApi._validate_yaml in (check, lambda *args, **kwargs: None):
                    try:
                        push(card)
                        raise SystemExit(f"{kind}: {card} was let through")
                    except Exception as error:
                        assert "Invalid metadata in README.md" in str(error), error
            HfApi._validate_yaml = check
            push(right[kind])
        assert api.model_info("alice/x").card_data.eval_results[0].metric_value == 0.5
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            api.upload_file(path_or_fileobj=b"# Hello", path_in_repo="README.md", repo_id="alice/x")
        assert "empty or missing yaml metadata" in str(seen[0].message)
        """,
        env,
        json.dumps(wrong),
        json.dumps(right),
    )
    refused = [r.path.split("/")[-1] for r in hub.requests if r.status == 400]
    assert sorted(refused) == ["main"] * 16 + ["validate-yaml"] * 16
    assert {kind: len(hub.commits("alice/x", kind)) for kind in wrong} == {"model": 3, "dataset": 2, "space": 2}


def fetch(url: str, data: bytes | None = None, method: str | None = None, **headers: str):
    return urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method))


def test_ranges_and_signed_links(hub, env):
    hub.create_repo("alice/x", {"a.txt": b"0123456789"})
    run_client(
        """
        from huggingface_hub import HfApi, HfFileSystem
        HfApi().upload_file(path_or_fileobj=bytes(range(256)) * 64, path_in_repo="big.bin", repo_id="alice/x")
        with HfFileSystem().open("alice/x/big.bin", block_size=64) as file:
            file.seek(1000)
            assert file.read(10) == (bytes(range(256)) * 64)[1000:1010]
        """,
        env,
    )
    answer = fetch(f"{hub.endpoint}/alice/x/resolve/main/a.txt", Range="bytes=2-4")
    assert (answer.status, answer.read(), answer.headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    answer = fetch(f"{hub.endpoint}/alice/x/resolve/main/big.bin", Range="bytes=16380-")
    assert answer.url.startswith(hub.storage)
    assert (answer.status, answer.read()) == (206, BIG[16380:])
    with pytest.raises(urllib.error.HTTPError, match="403"):
        fetch(answer.url.replace("/downloads/", "/downloads/f"))
    with pytest.raises(urllib.error.HTTPError, match="416"):
        fetch(f"{hub.endpoint}/alice/x/resolve/main/a.txt", Range="bytes=100-")


def test_gitignore_keeps_files_out(hub, env, tmp_path):
    for path, content in {".gitignore": "*.log\n", "a.log": "no", "a.txt": "yes"}.items():
        (tmp_path / "project").mkdir(exist_ok=True)
        (tmp_path / "project" / path).write_text(content)
    run_client(
        """
        import sys
        from huggingface_hub import HfApi
        HfApi().create_repo("alice/x")
        HfApi().upload_folder(repo_id="alice/x", folder_path=sys.argv[1])
        """,
        env,
        tmp_path / "project",
    )
    assert set(hub.files("alice/x")) == {".gitignore", "a.txt"}


def test_what_a_broken_client_sends_is_refused(hub):
    before = [hub.create_repo("alice/x", {"a.txt": b"1"})]
    login = {"Authorization": f"Bearer {hub.token('alice')}"}

    def commit(*operations: dict):
        lines = [{"key": "header", "value": {"summary": "x"}}, *operations]
        body = "\n".join(map(json.dumps, lines)).encode()
        return fetch(f"{hub.endpoint}/api/models/alice/x/commit/main", body, **login)

    def regular(path: str):
        return {"key": "file", "value": {"path": path, "content": "Mg==", "encoding": "base64"}}

    never_uploaded = {"path": "b.bin", "algo": "sha256", "oid": "0" * 64, "size": 3}
    for broken in [
        {"key": "lfsFile", "value": never_uploaded},
        *(regular(path) for path in ("../b", "a//b", ".git/config", "/etc/b")),
        {"key": "rename", "value": {"path": "a.txt"}},
    ]:
        with pytest.raises(urllib.error.HTTPError, match="400"):
            commit(regular("good.txt"), broken)
    wish = {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 3}]}
    batch = fetch(f"{hub.endpoint}/alice/x.git/info/lfs/objects/batch", json.dumps(wish).encode(), **login)
    actions = json.load(batch)["objects"][0]["actions"]
    with pytest.raises(urllib.error.HTTPError, match="400"):
        fetch(actions["upload"]["href"], b"abc", "PUT")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetch(actions["verify"]["href"], json.dumps(wish["objects"][0]).encode(), **login)
    assert hub.commits("alice/x")[:-1] == before
    assert commit(regular("good.txt")).status == 200
    assert hub.files("alice/x") == {"a.txt": b"1", "good.txt": b"2"}
