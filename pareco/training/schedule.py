"""The learning rate of every step."""

from __future__ import annotations


def learning_rate(step: int, *, steps: int, warmup_steps: float, peak: float) -> float:
    """Return the rate of `step` (from 0): linear warm-up to `peak`, then linear decay to zero.

    The first step of the warm-up already moves, and the last step still does.
    """
    if step < warmup_steps:
        return peak * min((step + 1) / warmup_steps, 1.0)
    return peak * (steps - step) / (steps - warmup_steps)
