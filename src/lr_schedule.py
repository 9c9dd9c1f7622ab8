"""Learning-rate schedules, per optimiser step; the trainer fills in the number of steps."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from src.errors import ConfigError, require


def constant(optimizer: Optimizer, total_steps: float, warmup_steps: int = 0) -> LambdaLR:
    """Linear warm-up over ``warmup_steps``, then the optimiser's own rate.

    Ho et al. 2020 warm up over 5,000 steps.
    """
    require(warmup_steps >= 0, "warmup_steps", warmup_steps, "must be >= 0")
    return LambdaLR(optimizer, lambda step: _warmup(step, warmup_steps))


def cosine(
    optimizer: Optimizer, total_steps: float, warmup_steps: int = 0, final: float = 0.0
) -> LambdaLR:
    """Linear warm-up, then a half cosine to ``final`` times the rate (Loshchilov & Hutter 2017)."""
    require(warmup_steps >= 0, "warmup_steps", warmup_steps, "must be >= 0")
    require(0 <= final <= 1, "final", final, "must be between 0 and 1")
    if not math.isfinite(total_steps):
        way_out = "set trainer.max_steps or trainer.max_epochs, or use lr_schedule=constant"
        raise ConfigError(f"lr_schedule=cosine: needs the number of steps; {way_out}")

    def factor(step: int) -> float:
        progress = min(1.0, max(0, step - warmup_steps) / max(1, total_steps - warmup_steps))
        decay = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
        return _warmup(step, warmup_steps) * decay

    return LambdaLR(optimizer, factor)


def _warmup(step: int, warmup_steps: int) -> float:
    if warmup_steps == 0:
        return 1.0
    return min(1.0, (step + 1) / warmup_steps)
