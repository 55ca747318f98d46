"""What SASRec's full softmax saves in a training step by never holding all logits.

    python scripts/bench_softmax.py [--items 16859] [--targets 1024] [--dim 64]

Both ways give loss and gradients of the same targets: ``cross_entropy`` over the whole table of logits, and
``full_softmax_loss``, which goes through it in blocks. They are compared before anything is timed. Multiplications are
the same both ways, so the limit is the plain way's time over that of the three products alone (logits, gradients of
users and of items), in the same blocks and the same run. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch
from bench_scoring import best_seconds
from torch import Tensor
from torch.nn import functional

from pulse_hf.models.sasrec.modeling_sasrec_losses import full_softmax_loss

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
BLOCK = 64  # targets whose logits the bare products hold at once


def plain(users: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """The loss as one would write it."""
    return functional.cross_entropy(users @ items.T, targets)


def products(users: Tensor, items: Tensor) -> None:
    """The multiplications of a step and nothing else."""
    logits, gradient, of_items = torch.empty(BLOCK, len(items)), torch.empty_like(users), torch.zeros_like(items)
    for start in range(0, len(users), BLOCK):
        block = users[start : start + BLOCK]
        part = torch.mm(block, items.T, out=logits[: len(block)])
        torch.mm(part, items, out=gradient[start : start + BLOCK])
        of_items.addmm_(part.T, block)


def main() -> None:
    """Time both ways and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=16_859, help="of the catalogue; Video Games has so many")
    parser.add_argument("--targets", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=10)
    settings = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    users = torch.randn(settings.targets, settings.dim, generator=generator).requires_grad_()
    items = (0.2 * torch.randn(settings.items, settings.dim, generator=generator)).requires_grad_()
    targets = torch.randint(settings.items, (settings.targets,), generator=generator)

    def step(loss: Loss) -> tuple[Tensor, ...]:
        value = loss(users, items, targets)
        return value, *torch.autograd.grad(value, (users, items))

    torch.testing.assert_close(step(full_softmax_loss), step(plain), atol=1e-6, rtol=1e-4)
    bare = (users.detach(), items.detach())
    ways = [lambda: step(plain), lambda: step(full_softmax_loss), lambda: products(*bare)]
    plain_seconds, blocks_seconds, products_seconds = best_seconds(ways, settings.repeats)
    ratio, limit = plain_seconds / blocks_seconds, plain_seconds / products_seconds
    print(
        f"all logits {1000 * plain_seconds:.1f} ms, in blocks {1000 * blocks_seconds:.1f} ms of processor time a step"
    )
    print(f"{ratio:.2f} times faster; the products alone would be {limit:.2f} times as fast")
    record = vars(settings) | {"threads": torch.get_num_threads()}
    print(json.dumps({"name": "full-softmax", "ratio": round(ratio, 3), "limit": round(limit, 3), "settings": record}))


if __name__ == "__main__":
    main()
