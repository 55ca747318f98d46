"""The engine behind a server: a real OpenAI-compatible one with pulse-nano, and one that fails in every way."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from small_road import small_settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from pulse_hf.artifacts import ArtifactError, read_table
from pulse_hf.evaluation.leakage import audit
from pulse_hf.hub.dataset_export import export_dataset
from pulse_hf.models.embedded import resolve_model
from pulse_hf.reasoning import server_engine
from pulse_hf.reasoning.generator import Sampling, engine_identity, open_generator
from pulse_hf.reasoning.prompts import Evidence, Prompt
from pulse_hf.reasoning.server_engine import ServerGenerator
from pulse_hf.reasoning.thoughts import thoughts
from pulse_hf.reasoning.transformers_engine import TransformersGenerator
from pulse_hf.recommender import PulseRecommender
from pulse_hf.training.scorer import recommender as train_recommender


def prompt(key: str, text: str) -> Prompt:
    return Prompt(key, ({"role": "user", "content": text},), Evidence(()))


class Flaky(BaseHTTPRequestHandler):
    """Answers as its script says; an integer is a status, bytes a body, anything else the text of a reply."""

    script: ClassVar[list[Any]] = []
    seen: ClassVar[list[dict[str, Any]]] = []
    keys: ClassVar[set[str | None]] = set()
    logprobs: ClassVar[tuple[float, ...]] = (-0.5, -1.5)
    lock: ClassVar[threading.Lock] = threading.Lock()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.lock:
            self.seen.append(body)
            self.keys.add(self.headers["authorization"])
            step = self.script.pop(0) if self.script else body["messages"][-1]["content"]
        if step == "drop":
            self.connection.close()
            return
        self.send_response(step if isinstance(step, int) else 200)
        self.send_header("content-type", "application/json")
        if step == 429:
            self.send_header("retry-after", "0.01")
        self.end_headers()
        if isinstance(step, bytes):
            self.wfile.write(step)
            return
        tokens = [{"token": "a", "logprob": value, "top_logprobs": []} for value in self.logprobs]
        choice = {"index": 0, "message": {"role": "assistant", "content": str(step)}, "finish_reason": "stop"}
        reply = {"id": "1", "created": 1, "model": "m", "system_fingerprint": "x", "object": "chat.completion"}
        reply["choices"] = [{**choice, "logprobs": {"content": tokens}}]
        reply["usage"] = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    Flaky.script, Flaky.seen, Flaky.keys = [], [], set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(server_engine, "_pause", lambda stop, seconds: None)
    yield f"m@http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_replies_come_in_order_with_seeds_of_their_own(flaky: str) -> None:
    generator = ServerGenerator(flaky, concurrency=4)
    prompts = [prompt(f"u#{number}", f"text {number}") for number in range(9)]
    made = generator.generate(prompts, width=2, sampling=Sampling(7, 0.5, 0.9), seed=3)
    assert [[one.text for one in row] for row in made] == [[f"text {number}"] * 2 for number in range(9)]
    assert made[0][0].log_likelihood == -1.0
    assert (made[0][0].num_tokens, made[0][0].finish) == (2, "stop")
    assert generator.usage.prompt_tokens == 18 * 3
    seeds = {(body["messages"][0]["content"], body["seed"]) for body in Flaky.seen}
    assert len(seeds) == 18
    assert {(body["max_tokens"], body["temperature"], body["top_p"]) for body in Flaky.seen} == {(7, 0.5, 0.9)}
    Flaky.seen = []
    generator.generate(prompts[::-1], width=2, sampling=Sampling(7, 0.5, 0.9), seed=3)
    assert {(body["messages"][0]["content"], body["seed"]) for body in Flaky.seen} == seeds


def test_what_may_pass_is_tried_again(flaky: str) -> None:
    Flaky.script = [503, 429, "drop", 500, "Reason: at last."]
    made = ServerGenerator(flaky).generate([prompt("u#1", "why")], width=1, sampling=Sampling(), seed=0)
    assert made[0][0].text == "Reason: at last."
    assert len(Flaky.seen) == 5


def test_what_will_not_pass_stops_with_the_reason(flaky: str) -> None:
    Flaky.script = [401]
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1.*no answer for u#1 in 1 tries \(status 401"):
        ServerGenerator(flaky).generate([prompt("u#1", "why")], width=1, sampling=Sampling(), seed=0)
    Flaky.script = [503] * 9
    with pytest.raises(ConnectionError, match="in 3 tries .*the same command goes on"):
        ServerGenerator(flaky, tries=3).generate([prompt("u#1", "why")], width=1, sampling=Sampling(), seed=0)
    with pytest.raises(ConnectionError, match="in 2 tries"):
        ServerGenerator("m@http://127.0.0.1:9/v1", tries=2).generate(
            [prompt("u#1", "why")], width=1, sampling=Sampling(), seed=0
        )


def test_an_answer_that_is_none_is_asked_for_again(flaky: str) -> None:
    Flaky.script = [
        b'{"error": {"message": "upstream"}}',
        b"<html>busy</html>",
        b'{"choices": []}',
        "Reason: at last.",
    ]
    made = ServerGenerator(flaky).generate([prompt("u#1", "why")], width=1, sampling=Sampling(), seed=0)
    assert made[0][0].text == "Reason: at last."
    Flaky.script = [b"{}"] * 2
    with pytest.raises(ConnectionError, match="no answer for u#1 in 2 tries .*without a choice"):
        ServerGenerator(flaky, tries=2).generate([prompt("u#1", "why")], width=1, sampling=Sampling(), seed=0)


def test_one_refused_prompt_gets_no_text_and_does_not_stop_the_others(
    flaky: str, caplog: pytest.LogCaptureFixture
) -> None:
    generator = ServerGenerator(flaky, concurrency=1)
    prompts = [prompt(f"u#{number}", f"text {number}") for number in range(3)]
    Flaky.script = ["text 0", 400, "text 2"]
    made = generator.generate(prompts, width=1, sampling=Sampling(), seed=0)
    assert [row[0].text for row in made] == ["text 0", "", "text 2"]
    assert "refused u#1 (status 400" in caplog.text
    Flaky.script = [413]  # a retry of that one alone: the server has answered before
    assert generator.generate(prompts[1:2], width=1, sampling=Sampling(), seed=1)[0][0].text == ""
    Flaky.script = [422] * 3
    with pytest.raises(ConnectionError, match=r"refused u#0 \(status 422"):
        ServerGenerator(flaky).generate(prompts, width=1, sampling=Sampling(), seed=0)


def test_no_server_of_an_address_is_sent_the_token_of_the_hub(flaky: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    ServerGenerator(flaky).generate([prompt("u#1", "why")], width=1, sampling=Sampling(), seed=0)
    monkeypatch.setenv("PULSE_SERVER_KEY", "its-own")
    ServerGenerator(flaky).generate([prompt("u#1", "why")], width=1, sampling=Sampling(), seed=0)
    assert Flaky.keys == {"Bearer none", "Bearer its-own"}


def test_the_address_is_no_part_of_the_identity() -> None:
    assert engine_identity("server", "a/b@http://x:1/v1") == engine_identity("server", "a/b@http://y:2/v1")
    assert open_generator("server", "a/b@http://x:1/v1", batch_size=5).model_id == "a/b"
    with pytest.raises(ValueError, match="expected at least 1"):
        ServerGenerator("a/b", concurrency=0)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, Path]]:
    """``transformers serve`` with pulse-nano."""
    pytest.importorskip("uvicorn", reason="transformers[serving] is not installed")
    pytest.importorskip("openai", reason="transformers[serving] is not installed")
    folder = Path(resolve_model("pulse-hf/pulse-nano")[0])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [shutil.which("transformers", path=str(Path(sys.executable).parent)) or "transformers", "serve"]
    command += [str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(240):
            if server.poll() is not None:
                pytest.fail(f"the server ended: {server.stderr.read() if server.stderr else ''}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.25)
        yield f"{folder}@http://127.0.0.1:{port}/v1", folder
    finally:
        server.terminate()
        server.wait(30)


def test_a_real_server_writes_what_the_process_writes(served: tuple[str, Path]) -> None:
    address, folder = served
    prompts = [prompt(f"u#{number}", f"Review {number}: I always look for quiet things. Why?") for number in range(3)]
    sampling = Sampling(max_new_tokens=24)
    remote = ServerGenerator(address, concurrency=2)
    made = remote.generate(prompts, width=1, sampling=sampling, seed=0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    process = TransformersGenerator(model, tokenizer, model_id="nano", revision="1")
    local = process.generate(prompts, width=1, sampling=sampling, seed=0)
    assert [row[0].text.strip() for row in made] == [row[0].text.strip() for row in local]
    assert all(row[0].text for row in made)
    assert remote.usage.generated_tokens > 0


@pytest.mark.slow
def test_a_run_whose_reasons_come_from_a_server_is_audited_recommends_and_tells_nobody_where(
    served: tuple[str, Path], small_run: Path, tmp_path: Path
) -> None:
    address, _ = served
    for stage in ("sequences", "sequential", "candidates", "rationales", "thought_space"):
        (tmp_path / stage).symlink_to(small_run / stage)
    small = small_settings()
    writing = replace(small.thoughts, engine="server", model=address, max_training_users=8)
    thoughts(tmp_path, writing, seed=small.seed)
    train_recommender(tmp_path, replace(small.recommender, systems=("pulse",)), seed=small.seed)
    assert audit(tmp_path)["passed"]  # some trees are grown again, by the same server
    (tmp_path / "out").mkdir()
    export_dataset(tmp_path, "thoughts", tmp_path / "out", config="shop")
    published = {path.name: _as_text(path) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"train.parquet", "test.parquet", "checksums.json"} <= published.keys()
    assert not any("127.0.0.1" in text for text in published.values())
    recommender = PulseRecommender.from_run(tmp_path)
    history = list(recommender.parts.items)[:2]
    assert recommender.recommend(history, k=1)[0].rationale == recommender.explain(history).chosen.text
    recommender.save_pretrained(tmp_path / "saved")
    saved = {path.name: _as_text(path) for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert {"pulse.json", "checksums.json"} <= saved.keys()
    assert not any("127.0.0.1" in text for text in saved.values())
    with pytest.raises(ArtifactError, match="written by the server model .*pass generator="):
        PulseRecommender.from_pretrained(str(tmp_path / "saved"))
    again = PulseRecommender.from_pretrained(str(tmp_path / "saved"), generator=ServerGenerator(address))
    assert again.recommend(history, k=1) == recommender.recommend(history, k=1)


def _as_text(path: Path) -> str:
    """What a file says; a table is unpacked first."""
    if path.suffix == ".parquet":
        return str(read_table(path).to_pylist())
    return path.read_text(errors="ignore")
