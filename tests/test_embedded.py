"""Which model it is: a folder by all that decides how it reads and writes, a repo by its commit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import run_client

from pulse_hf.artifacts import ArtifactError, Fingerprint, Shards, build
from pulse_hf.models.embedded import resolve_model

FILES = {
    "config.json": '{"model_type": "llama"}',
    "tokenizer.json": "{}",
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
    "1_Pooling/config.json": "{}",
    "vocab.txt": "one",
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with the files of a model; nothing in it can be loaded."""
    folder = tmp_path / "base"
    for name, text in {**FILES, "model.safetensors": "weights", "README.md": "a card"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("name", FILES)
def test_a_folder_is_another_model_when_a_file_beside_the_weights_is(base: Path, name: str) -> None:
    before = resolve_model(str(base))[1]
    (base / name).write_text(FILES[name] + " ")
    after = resolve_model(str(base))[1]
    assert after["files_sha256"] != before["files_sha256"]
    assert after["weights_sha256"] == before["weights_sha256"]
    (base / name).unlink()
    assert resolve_model(str(base))[1]["files_sha256"] not in (before["files_sha256"], after["files_sha256"])


def test_a_card_and_a_place_do_not_count(base: Path) -> None:
    before = resolve_model(str(base))[1]
    (base / "README.md").write_text("another card")
    assert resolve_model(str(base))[1] == before
    base.rename(base.with_name("elsewhere"))
    assert resolve_model(str(base.with_name("elsewhere")))[1]["files_sha256"] == before["files_sha256"]


def test_a_chat_template_that_changed_since_a_kill_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    def go(make: Any) -> bool:
        return build(tmp_path / "toy", Fingerprint("toy", {}, 0, model=resolve_model(str(base))[1]), make)

    def killed(work: Path) -> dict[str, Any]:
        Shards(work, "written", "decisions").append(
            [{"decision_id": "u#1", "user_id": "u", "position": 1, "split": "test"}]
        )
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(killed)
    (base / "chat_template.jinja").write_text("{{ other }}")
    with pytest.raises(ArtifactError, match=r"(?s)model\.files_sha256: was .*--force"):
        go(lambda work: {})


def test_a_repo_of_pickles_is_refused_before_anything_is_fetched(hub: Any, tmp_path: Path) -> None:
    hub.create_repo("bob/pickles", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    hub.create_repo("bob/both", {"config.json": b"{}", "pytorch_model.bin": b"x", "model.safetensors": b"x"})
    code = """
        import json
        from pulse_hf.models.embedded import resolve_model
        told = []
        for name in ("bob/pickles", "bob/both"):
            try:
                told.append(resolve_model(name)[1]["weights_sha256"])
            except Exception as error:
                told.append(f"{type(error).__name__}: {error}")
        print(json.dumps(told))
    """
    out = run_client(code, hub.environment(tmp_path / "cache", "alice"), patient=False)
    pickles, both = json.loads(out.splitlines()[-1])
    assert pickles.startswith("ValueError: bob/pickles@main holds pytorch_model.bin and no .safetensors weights")
    assert both == "by revision"


def test_a_run_stays_at_the_commit_it_began_with(hub: Any, tmp_path: Path) -> None:
    weights = {"config.json": b"{}", "model.safetensors": b"x"}
    hub.create_repo("bob/base", weights)
    code = """
        import json, sys
        from pathlib import Path
        from pulse_hf import pipeline
        from pulse_hf.artifacts import Fingerprint, build
        from pulse_hf.models.embedded import resolve_model
        from pulse_hf.settings import RunSettings
        from pulse_hf.stages import stage_named

        run, names = Path(sys.argv[1]), sys.argv[2:]

        def toy(word, name):
            def make(run, group, *, seed, force):
                mark = Fingerprint(word, {}, 0, model=resolve_model(name)[1])
                build(run / word, mark, lambda work: {}, force=force)
                return run / word
            pipeline._MAKERS[word] = make
            return stage_named(word)

        for word in ("rationales", "thoughts"):
            for name in names:
                stage = toy(word, name)
                pipeline.run_stage(stage, run, RunSettings())
        print(json.dumps([json.loads((run / word / "manifest.json").read_text())["fingerprint"]["model.revision"]
                          for word in ("rationales", "thoughts")]))
    """
    environment = hub.environment(tmp_path / "cache", "alice")

    def made(run: str, *names: str) -> list[str]:
        return [
            json.loads(one)
            for one in json.loads(run_client(code, environment, tmp_path / run, *names).splitlines()[-1])
        ]

    first = hub.commits("bob/base")[0]
    assert made("run", "bob/base") == [first, first]
    hub.commit("bob/base", {"README.md": b"only a card"})
    latest = hub.commits("bob/base")[0]
    assert latest != first
    assert made("run", "bob/base") == [first, first]  # skipped, not refused
    for path in (tmp_path / "run" / "thoughts").iterdir():
        path.unlink()
    (tmp_path / "run" / "thoughts").rmdir()
    assert made("run", "bob/base") == [first, first]  # made anew with what the others have
    assert made("other", "bob/base") == [latest, latest]
    with pytest.raises(RuntimeError, match=r"model\.revision: was"):
        made("run", f"bob/base@{latest}")
