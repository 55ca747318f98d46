"""What a model's folder may say before anything of it is loaded: sizes within reason, weights inside the folder.

A configuration is data from anywhere. Of a billion layers a library would begin to make them; a shard named
``../../x`` would be read wherever it lies, and no checksum of the folder would cover it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pulse_hf.artifacts import ArtifactError, read_json

# Ours: some times the largest that is published of each.
_MOST = {
    ("num_hidden_layers", "num_layers", "n_layers", "n_layer"): 1_000,
    ("num_attention_heads", "num_key_value_heads", "num_heads", "n_heads", "n_head", "head_dim"): 4_096,
    ("hidden_size", "dim", "d_model", "n_embd", "text_dim", "projection_dim"): 100_000,
    ("intermediate_size", "hidden_dim", "n_inner", "num_experts", "num_local_experts"): 1_000_000,
    ("vocab_size", "num_items", "max_position_embeddings", "max_length"): 100_000_000,
}
_LIMITS = {name: most for names, most in _MOST.items() for name in names}

__all__ = ["check_config", "check_model_folder"]


def check_model_folder(folder: Path) -> None:
    """Refuse a model's folder whose configuration or list of weights cannot be an honest one's.

    Args:
        folder: With ``config.json`` and ``*.safetensors``; what is not there is not missed here.

    Raises:
        ArtifactError: A size is out of reason, or a shard lies elsewhere; file, field and value are named.
    """
    check_config(folder / "config.json")
    for index in sorted(folder.glob("*.safetensors.index.json")):
        found = read_json(index)
        shards = found.get("weight_map", {}) if isinstance(found, dict) else {}
        for name in sorted(set(map(str, shards.values()))):
            if "\\" in name or Path(name).name != name or not name.endswith(".safetensors"):
                raise ArtifactError(
                    f"{index}: names the shard {name!r}, expected a .safetensors file beside it. Do not load this "
                    "model; get it from where it was published first."
                )
            if not (folder / name).is_file():
                raise ArtifactError(f"{index}: the shard {name!r} is not there. Copy or download the model again.")


def check_config(path: Path) -> None:
    """Refuse a configuration with sizes that are negative, no integers, or beyond any published model's.

    Args:
        path: The ``config.json``; nothing is refused if there is none.

    Raises:
        ArtifactError: One is; file, field, value and limit are named.
    """
    if not path.is_file():
        return
    for name, value in _sizes(read_json(path)):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not 0 <= value <= _LIMITS[name]:
            raise ArtifactError(
                f"{path}: {name} is {value!r:.40}, expected an integer from 0 to {_LIMITS[name]:,}. The file is "
                "damaged, or made to fill the memory, and nothing of the model was loaded. Get it from where it was "
                "published first."
            )


def _sizes(config: Any) -> Iterator[tuple[str, Any]]:
    """Sizes anywhere in a configuration; those of parts lie in objects of their own."""
    pending = [config]
    while pending:
        part = pending.pop()
        if isinstance(part, list):
            pending += part
        elif isinstance(part, dict):
            pending += part.values()
            yield from ((name, part[name]) for name in _LIMITS if isinstance(part.get(name), bool | int | float | str))
