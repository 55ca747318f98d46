"""A small Hugging Face Hub on the loopback interface, for the real clients.

It speaks the HTTP API of the Hub to `huggingface_hub` and the libraries above it (`datasets`, `evaluate`,
`transformers`, `peft`, `sentence_transformers`): users and tokens; private and gated models, datasets and Spaces;
commits with regular and LFS files, branches, tags, trees; downloads with ranges; metadata checks. Faults can be
injected, and every request is logged.

    with LoopbackHub(folder) as hub:                        # or the pytest fixture `hub`
        env = hub.environment(cache=tmp_path / "cache", user="alice")
        run_client("from huggingface_hub import HfApi; HfApi().create_repo('alice/x')", env)
        hub.commit("alice/x", {"a.txt": b"1"})              # without a client, as somebody else
        hub.files("alice/x")                                # {"a.txt": b"1"}
        hub.faults.add(Status(503, retry_after=0), method="GET|HEAD", path="/resolve/", nth=2)
        hub.faults.add(DropAfter(), path="/commit/")        # done, but the client does not hear of it
        hub.faults.add(Meanwhile(lambda: hub.commit("alice/x", {"b.txt": b"2"})), path="/commit/")
        [str(request) for request in hub.requests]          # "POST /api/repos/create 200", ...

Clients read `HF_ENDPOINT` when they are imported, so they run in processes of their own (`run_client`). A client that
meets a fault may retry after a second or more; `run_client(..., patient=False)` leaves out the waiting.

To cut a push at each of its requests: push once and count `hub.requests`; then, for each nth, start from a fresh
repository and `hub.faults.add(DropBefore(), nth=nth, times=None)`: from that request on the Hub stays away.

Differences from the real Hub:
    * No Xet (`HF_HUB_DISABLE_XET=1` is set), no LFS multipart, no git over HTTP, no compression.
    * No organisations, pull requests, discussions, searches and lists of repositories, likes, collections, moved,
      duplicated or squashed repositories, dataset viewer or parquet conversion, no rate limits or quotas; Spaces are
      files that never run. What is not there answers 404 and says so.
    * A write needs the owner's token with the role "write"; there are no finer token rights. A missing or private
      repository is always 404 RepoNotFound (the real Hub says 401 to anonymous clients; they raise the same error).
      A user gets through a gate by `hub.repo(id).readers.add(user)`, not by asking.
    * A new Space has no README of the Hub's making. Ids without a namespace ("gpt2") are never found.
    * The metadata check knows the documented rules and those seen in refused uploads (`cards.py`), not all of them.
    * Model information holds what a repository says itself; no computed tags, `config` or `safetensors`.
    * Which files go to LFS follows `.gitattributes`, size (10 MiB) and zero bytes in the first 512.
    * Commit shas have the form but not the value git would give; blob oids are git's.
"""

from .client import run_client
from .faults import DropAfter, DropBefore, Fault, Faults, FlipByte, Meanwhile, Record, Status, Truncate
from .hub import LoopbackHub

__all__ = [
    "DropAfter",
    "DropBefore",
    "Fault",
    "Faults",
    "FlipByte",
    "LoopbackHub",
    "Meanwhile",
    "Record",
    "Status",
    "Truncate",
    "run_client",
]
