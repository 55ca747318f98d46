"""Recommender repos made to harm: each is refused with a sentence or loads without running anything of its own."""

import json
import pickle
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub, run_client

from pulse_hf.artifacts import read_tensors, write_tensors
from pulse_hf.hub.files import CHECKSUMS, seal_folder
from pulse_hf.recommender import PulseRecommender

pytestmark = pytest.mark.slow

TRY = """
    import json, sys, traceback
    from pulse_hf.recommender import PulseRecommender
    outcomes = {}
    for name in sys.argv[1:]:
        try:
            found = PulseRecommender.from_pretrained(f"evil/{name}").recommend(["a kettle nobody sells"], k=1)
            outcomes[name] = ["loaded", found[0].title]
        except Exception as error:
            outcomes[name] = [type(error).__name__, str(error)]
    print(json.dumps(outcomes))
"""


class Shop:
    """A saved recommender that can be spoilt; ``plants`` are files beside what is sealed."""

    def __init__(self, folder: Path, canary: Path) -> None:
        self.folder, self.code = folder, f"open({str(canary)!r}, 'a').write(__name__)\n"
        self.canary, self.plants, self.sealed = canary, {}, True

    def json(self, name: str, **changes: object) -> None:
        path = self.folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def pickle(self) -> bytes:
        return b"\x80\x04" + pickle.dumps(Bomb(str(self.canary)))[2:]


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def beside(shop):
    shop.plants = {"thought_space/pytorch_model.bin": shop.pickle(), "adapter/adapter_model.bin": shop.pickle()}


def pickled_towers(shop):
    (shop.folder / "thought_space" / "model.safetensors").unlink()
    beside(shop)


def pickled_adapter(shop):
    (shop.folder / "adapter" / "adapter_model.safetensors").unlink()
    beside(shop)


def code_of_base(shop):
    shop.json("base/config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "evil.Evil"})
    shop.plants = {f"base/{name}.py": shop.code.encode() for name in ("modeling_evil", "evil")}


def code_of_tokenizer(shop):
    shop.json("base/tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    shop.plants = {"base/evil.py": shop.code.encode()}


def code_of_space(shop):
    for name, kind in (("config.json", "AutoModel"), ("processor_config.json", "AutoProcessor")):
        shop.json(f"thought_space/{name}", auto_map={kind: "evil.Evil", "AutoConfig": "evil.Evil"})
    names = ("evil", "modeling_thought_space", "processing_thought_space", "configuration_thought_space")
    for path in shop.folder.rglob("*.py"):
        path.unlink()
    shop.plants = {f"thought_space/{name}.py": shop.code.encode() for name in names}


def modules(shop):
    names = ("pulse_hf", "sitecustomize", "conftest", "torch", "setup")
    shop.plants = {f"{name}.py": shop.code.encode() for name in names}


def sealed_with(name):
    def spoil(shop):
        record = json.loads((shop.folder / CHECKSUMS).read_text())
        record["files"][name] = {"size": 4, "sha256": "0" * 64}
        (shop.folder / CHECKSUMS).write_text(json.dumps(record))
        shop.sealed = False

    return spoil


def huge(shop):
    record = json.loads((shop.folder / CHECKSUMS).read_text())
    record["files"]["base/model.safetensors"]["size"] = 10**15
    (shop.folder / CHECKSUMS).write_text(json.dumps(record))
    shop.sealed = False


def nan_adapter(shop):
    path = shop.folder / "adapter" / "adapter_model.safetensors"
    write_tensors(path, {name: value * float("nan") for name, value in read_tensors(path).items()})


def nan_towers(shop):
    path = shop.folder / "sequential" / "model.safetensors"
    write_tensors(path, {name: value + float("inf") for name, value in read_tensors(path).items()})


def foreign_library(shop):
    shop.json(
        "adapter/adapter_config.json",
        auto_mapping={"base_model_class": "Evil", "parent_library": "evil"},
        base_model_name_or_path="evil/other",
    )
    shop.plants = {"evil.py": shop.code.encode()}


def template(shop):
    text = "{{ cycler.__init__.__globals__.os.system('touch " + str(shop.canary) + "') }}"
    (shop.folder / "base" / "chat_template.jinja").write_text(text)


def server(shop):
    record = json.loads((shop.folder / "pulse.json").read_text())
    shop.json("pulse.json", thoughts=record["thoughts"] | {"engine": "server", "model": "x@http://127.0.0.1:9/v1"})


def other_writer(shop):
    record = json.loads((shop.folder / "pulse.json").read_text())
    shop.json("pulse.json", thoughts=record["thoughts"] | {"model": "evil/writer"})


def nested(shop):
    (shop.folder / "pulse.json").write_text("[" * 100_000)


def no_parquet(shop):
    (shop.folder / "catalogue" / "items.parquet").write_bytes(b"PAR1" + b"\xff" * 1000 + b"PAR1")


def long_header(shop):
    (shop.folder / "score_head.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


LOADS = (beside, code_of_base, code_of_tokenizer, code_of_space, modules, foreign_library)
REFUSED = {
    pickled_towers: "no file named model.safetensors",
    pickled_adapter: "only safetensors are loaded",
    sealed_with("../../outside.json"): "never published",
    sealed_with("/etc/evil.json"): "never published",
    huge: "Nothing was fetched",
    nan_adapter: "not finite",
    nan_towers: "not finite",
    template: "chat template",
    server: "pass generator=",
    other_writer: "",
    nested: "pulse.json",
    no_parquet: "items.parquet",
    long_header: "score_head.safetensors",
}


def test_no_planted_code_runs_and_nothing_hostile_is_used(small_run, tmp_path_factory):
    work = tmp_path_factory.mktemp("hostile")
    canary = work / "canary"
    recommender = PulseRecommender.from_run(small_run)
    names = {}
    with LoopbackHub(work / "hub") as hub:
        writer = {"config.json": json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}).encode()}
        hub.create_repo("evil/writer", writer | {"evil.py": f"open({str(canary)!r}, 'w')".encode()})
        for number, spoil in enumerate((*LOADS, *REFUSED)):
            folder = work / f"shop{number}"
            recommender.save_pretrained(folder)
            shop = Shop(folder, canary)
            spoil(shop)
            if shop.sealed:
                seal_folder(folder, "recommender")
            files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
            hub.create_repo(f"evil/shop{number}", files | shop.plants)
            names[f"shop{number}"] = spoil
        out = run_client(TRY, hub.environment(work / "cache"), *names, timeout=1200)
    outcomes = json.loads(out.strip().splitlines()[-1])
    assert not canary.exists(), "planted code ran"
    for name, spoil in names.items():
        kind, text = outcomes[name]
        label = f"{name} {getattr(spoil, '__name__', spoil)}: {kind} {text[:300]}"
        if spoil in REFUSED:
            assert kind in ("ArtifactError", "ConnectionError", "OSError", "ValueError"), label
            assert REFUSED[spoil] in text, label
        else:
            assert kind == "loaded", label
    assert len(outcomes) >= 16
