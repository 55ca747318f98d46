"""Where bfloat16 is computed natively; elsewhere it is emulated, which is slower than float32."""

from __future__ import annotations


def computes_in_bf16(device: str) -> bool:
    """Whether the hardware of a device type multiplies in bfloat16.

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
