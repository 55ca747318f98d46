"""Losses of predicting the next item: the softmax over the whole catalogue, and the sampled ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

# Logits of one block: what stays in a core's cache, and on a GPU what keeps it busy.
_BLOCK_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}


def full_softmax_loss(users: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    r"""Mean cross-entropy of the targets in a softmax over all items, without ever holding all logits.

    .. math:: L = \frac1N \sum_n \Big(\log \sum_v e^{u_n \cdot i_v} - u_n \cdot i_{y_n}\Big)

    Value and gradients are those of ``cross_entropy(users @ items.T, targets)``, summed in the vectors' type. There,
    four passes over a table of targets x items through memory cost more than the products; here a block of targets
    goes through all of it, its gradients included, while its logits are in the cache.

    Args:
        users: (num_targets, dim) vectors before each target.
        items: (num_items, dim) vectors of the items in the softmax.
        targets: (num_targets,) rows of ``items``.

    Returns:
        A scalar that can be differentiated once, by ``users`` and ``items``.

    Example:
        >>> round(float(full_softmax_loss(torch.zeros(2, 3), torch.zeros(5, 3), torch.tensor([0, 4]))), 4)  # ln 5
        1.6094
    """
    loss: Tensor = _FullSoftmax.apply(users, items, targets)
    return loss


class _FullSoftmax(torch.autograd.Function):
    """Gradients are made with the loss: a second visit would have to make all logits again."""

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, targets: Tensor) -> Tensor:
        """Loss of all blocks; gradients too, where somebody asks for them."""
        wanted = any(ctx.needs_input_grad)
        room = _BLOCK_BYTES.get(users.device.type, _BLOCK_BYTES["cuda"])
        # Every block reads all items and their gradients once: fewer rows than numbers in a vector would not pay.
        size = min(max(1, len(users)), max(users.shape[1], room // (len(items) * users.element_size())))
        cache = users.new_empty(size, len(items))
        users_gradient, items_gradient = torch.zeros_like(users), torch.zeros_like(items)
        total = users.new_zeros(())
        for start in range(0, len(users), size):
            block = slice(start, start + size)
            logits = torch.mm(users[block], items.T, out=cache[: len(users[block])])
            own = targets[block, None]
            highest = logits.amax(dim=1, keepdim=True)
            expected = logits.gather(1, own) - highest
            masses = logits.sub_(highest).exp_()
            whole = masses.sum(dim=1, keepdim=True)
            total += (whole.log() - expected).sum()
            if wanted:  # by the logits: the probabilities, less one at the target
                by_logits = masses.div_(whole)
                by_logits.scatter_add_(1, own, torch.full_like(expected, -1.0))
                torch.mm(by_logits, items, out=users_gradient[block])
                items_gradient.addmm_(by_logits.T, users[block])
        number = max(1, len(users))
        ctx.save_for_backward(users_gradient.div_(number), items_gradient.div_(number))
        return total / len(users)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradients made in the forward pass, times the one from above."""
        by_users, by_items = ctx.saved_tensors
        return by_users * gradient, by_items * gradient, None


def sampled_loss(positive: Tensor, negative: Tensor, *, num_items: int, t: float) -> Tensor:
    """Generalised binary cross-entropy (gSASRec, Petrov & Macdonald 2023, Eq. 12); ``t=0`` is plain BCE.

    Args:
        positive: (num_targets,) scores of the targets.
        negative: (num_targets, num_negatives) scores of uniformly sampled other items.
        num_items: Size of the catalogue they are sampled from.
        t: Calibration in [0, 1].

    Returns:
        The mean over targets and their negatives, a scalar.

    >>> round(float(sampled_loss(torch.zeros(2), torch.zeros(2, 3), num_items=9, t=0.0)), 4)  # ln 2
    0.6931
    """
    sampling_rate = negative.shape[1] / max(1, num_items - 1)
    beta = 1.0 - t * (1.0 - sampling_rate)
    terms = beta * F.logsigmoid(positive) + F.logsigmoid(-negative).sum(-1)
    return -terms.mean() / (1 + negative.shape[1])
