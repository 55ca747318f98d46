"""The state of a fit as tensors, so that a killed fit goes on bit by bit as if nothing had happened."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["fit_state", "prefixed", "restore_fit", "unprefixed"]


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under ``prefix.``."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def unprefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under ``prefix.``, by their own names.

    >>> unprefixed("a", {"a.x": torch.ones(1), "b.x": torch.zeros(1)})
    {'x': tensor([1.])}
    """
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer remembers of each parameter, by ``place.name``."""
    state = optimizer.state_dict()["state"]
    return {
        f"{place}.{name}": torch.as_tensor(value).clone()
        for place, values in state.items()
        for name, value in values.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rates: list[float]) -> None:
    """Put back what :func:`_optimizer_state` gave, and the learning rate of each group of parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        place, name = key.split(".", 1)
        state.setdefault(int(place), {})[name] = value
    whole = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _random_state(generator: torch.Generator) -> dict[str, Tensor]:
    """Torch's global generators (dropout draws from them) and one of the fit's own."""
    state = {"own": generator.get_state(), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random(tensors: Mapping[str, Tensor], generator: torch.Generator) -> None:
    """Put back what :func:`_random_state` gave."""
    generator.set_state(tensors["own"])
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


def fit_state(
    weights: Mapping[str, Tensor],
    best: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """All tensors of a fit under way: present and best weights, the optimizer, the random generators."""
    return {
        **prefixed("model", weights),
        **prefixed("best", best),
        **prefixed("optimizer", _optimizer_state(optimizer)),
        **prefixed("random", _random_state(generator)),
    }


def restore_fit(
    tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, rates: list[float], generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Put optimizer and generators back as :func:`fit_state` found them.

    Returns:
        The present and the best weights.
    """
    _restore_optimizer(optimizer, unprefixed("optimizer", tensors), rates)
    _restore_random(unprefixed("random", tensors), generator)
    return unprefixed("model", tensors), unprefixed("best", tensors)
