"""The gradients of an optimiser step: measured once, for the check and for clipping."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer


class Gradients:
    """Norm of all gradients, and what an optimiser does with it, with no wait for the device.

    torch's fused Adam and AdamW take two numbers that lie on the device: by ``grad_scale`` they
    divide the gradients, and with ``found_inf`` of 1 they leave weights and their own state as they
    are. Clipping and skipping then cost no pass over the gradients. Other optimisers get gradients
    that were divided, or none. (Fused SGD would begin with a momentum that nobody has set where its
    first step is skipped.)
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._norm: Tensor | None = None
        self._weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    @property
    def fused(self) -> bool:
        """Whether the optimiser takes numbers on the device; a resumed run's may not."""
        is_adam = isinstance(self.optimizer, torch.optim.Adam | torch.optim.AdamW)
        return is_adam and all(group.get("fused") for group in self.optimizer.param_groups)

    def norm(self) -> Tensor:
        """Euclidean norm of all gradients, (); measured once in an optimiser step."""
        if self._norm is None:
            norms = torch._foreach_norm(self._all())
            self._norm = torch.linalg.vector_norm(torch.stack(norms))
        return self._norm

    def skip_if(self, bad: Tensor) -> None:
        """Let a fused optimiser skip this step where ``bad``, () float, is 1 and not 0."""
        self.optimizer.found_inf = bad

    def clip(self, limit: float | None) -> None:
        """Scale the gradients to a norm of at most ``limit``; 0 and None are no limit.

        Pascanu et al. 2013, algorithm 1.
        """
        gradients = self._all() if limit else []
        if gradients:
            excess = (self.norm() / limit).clamp_(min=1)
            if self.fused:
                self.optimizer.grad_scale = excess
            else:
                torch._foreach_div_(gradients, excess)
        self._norm = None

    def remove(self) -> None:
        """Forget the gradients and their norm: optimisers skip weights without."""
        self._norm = None
        for weight in self._weights:
            weight.grad = None

    def _all(self) -> list[Tensor]:
        return [weight.grad for weight in self._weights if weight.grad is not None]
