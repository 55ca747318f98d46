"""Where models run when nobody says, and what its hardware computes."""

from __future__ import annotations

import os


def default_device() -> str:
    """``"cuda"`` where torch sees a GPU, else ``"cpu"``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def require_usable(device: str | None, dtype: object) -> None:
    """Refuse a device that torch has not here, or a precision that is not one of torch's.

    Raises:
        ValueError: One of them; ``None`` stands for the default and passes.
    """
    import torch

    if device is not None and torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch sees no GPU here; leave it out, or name 'cpu'")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype is {dtype!r}, expected one of torch's, such as torch.float32")


def few_compiled_products() -> None:
    """Have oneDNN keep few compiled matrix products, unless the environment says otherwise; before torch multiplies.

    It keeps 1,024 by default, one for every shape of batch: gigabytes in a long run.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")


def computes_in_bf16(device: str) -> bool:
    """Whether the hardware of a device type multiplies in bfloat16; emulated, it is slower than float32.

    Args:
        device: ``"cpu"``, ``"cuda"`` or another device type of torch; unknown ones compute in float32.
    """
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return False
