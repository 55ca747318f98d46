"""The libraries above huggingface_hub against the loopback Hub, each in a process of its own."""

import pytest
from loopback_hub import run_client


@pytest.fixture
def env(hub, tmp_path):
    return hub.environment(tmp_path / "cache", "alice")


def test_datasets_push_load_and_stream(hub, env, tmp_path):
    run_client(
        """
        from datasets import Dataset, DatasetDict
        rows = {"user": [1, 2, 3], "items": [[1], [2, 3], []], "text": ["a", "b", "ü"]}
        both = DatasetDict(train=Dataset.from_dict(rows), test=Dataset.from_dict(rows).select([0]))
        both.push_to_hub("alice/shop", "small", set_default=True, private=True)
        Dataset.from_dict({"other": [1.5]}).push_to_hub("alice/shop", "other", split="validation")
        """,
        env,
    )
    files = hub.files("alice/shop", "dataset")
    assert set(files) == {
        "README.md",
        "small/train-00000-of-00001.parquet",
        "small/test-00000-of-00001.parquet",
        "other/validation-00000-of-00001.parquet",
    }
    run_client(
        """
        import sys
        from datasets import get_dataset_config_names, load_dataset
        from datasets.exceptions import DatasetNotFoundError
        try:
            load_dataset("alice/shop", "small", token=sys.argv[1])
            raise SystemExit("a stranger read a private dataset")
        except DatasetNotFoundError:
            pass
        assert set(get_dataset_config_names("alice/shop")) == {"small", "other"}
        assert load_dataset("alice/shop", split="train")["items"] == [[1], [2, 3], []]
        assert load_dataset("alice/shop", "other")["validation"]["other"] == [1.5]
        assert [row["text"] for row in load_dataset("alice/shop", "small", split="train", streaming=True)] == [*"abü"]
        """,
        hub.environment(tmp_path / "cache-2", "alice"),
        hub.token("bob"),
    )


METRIC = b"""
import datasets
import evaluate


class Hits(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"hits": sum(p == r for p, r in zip(predictions, references)) / len(predictions)}
"""


def test_evaluate_loads_a_metric_from_a_space(hub, env):
    hub.create_repo("alice/hits", {"hits.py": METRIC}, repo_type="space")
    out = run_client(
        """
        import evaluate
        print(evaluate.load("alice/hits").compute(predictions=[1, 2], references=[1, 3]))
        """,
        env,
    )
    assert out.strip() == "{'hits': 0.5}"


def test_transformers_pushes_and_loads_by_tag(hub, env, tmp_path):
    run_client(
        """
        import sys, torch
        from huggingface_hub import HfApi
        from transformers import AutoModel, BertConfig, BertModel
        tiny = dict(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
        made = BertModel(BertConfig(**tiny))
        made.push_to_hub("alice/tiny", private=True, tags=["pulse"])
        HfApi().create_tag("alice/tiny", tag="v1")
        HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="alice/tiny")
        loaded = AutoModel.from_pretrained("alice/tiny", revision="v1", cache_dir=sys.argv[1])
        assert all(torch.equal(a, b) for a, b in zip(made.parameters(), loaded.parameters(), strict=True))
        """,
        env,
        tmp_path / "cache-2",
    )
    assert {"config.json", "model.safetensors", "README.md"} == set(hub.files("alice/tiny"))


@pytest.mark.slow
def test_peft_and_sentence_transformers(hub, env, tmp_path):
    run_client(
        """
        import os, sys, torch
        os.chdir(sys.argv[1])
        from peft import LoraConfig, PeftModel, get_peft_model
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.sentence_transformer.modules import Pooling
        from transformers import BertConfig, BertModel, BertTokenizerFast, LlamaConfig, LlamaForCausalLM

        tiny = dict(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
        LlamaForCausalLM(LlamaConfig(**tiny)).push_to_hub("alice/base")
        base = LlamaForCausalLM.from_pretrained("alice/base")
        adapter = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        adapter.push_to_hub("alice/adapter")
        again = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained("alice/base"), "alice/adapter")
        tokens = torch.tensor([[1, 2, 3]])
        assert torch.equal(adapter(tokens).logits, again(tokens).logits)

        BertModel(BertConfig(**tiny)).save_pretrained("bert")
        open("bert/vocab.txt", "w").write("\\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcde"]))
        BertTokenizerFast("bert/vocab.txt").save_pretrained("bert")
        model = SentenceTransformer(modules=[Transformer("bert"), Pooling(8)], device="cpu")
        model.push_to_hub("alice/sentences")
        assert (SentenceTransformer("alice/sentences", device="cpu").encode("a b") == model.encode("a b")).all()
        """,
        env,
        tmp_path,
    )
    assert {"adapter_config.json", "adapter_model.safetensors"} < set(hub.files("alice/adapter"))
    assert "1_Pooling/config.json" in hub.files("alice/sentences")
