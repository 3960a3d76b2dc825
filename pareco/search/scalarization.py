"""Augmented Tchebyshev scalarization of loss and cost (DESIGN section 4, item 4)."""

import torch
from torch import Tensor


def tchebyshev(
    objectives: Tensor,
    cost_weight: float,
    reference: float = -3.0,
    augmentation: float = 1e-6,
) -> Tensor:
    """Return T_lambda of `m x 2` objectives (loss, cost) as `m` values; less is better.

    Objectives and `reference` (the paper's b) are in standard deviations of the history. With
    lambda = (1 - `cost_weight`, `cost_weight`), T_lambda = max_i lambda_i (f_i - b) +
    `augmentation` * sum_i lambda_i (f_i - b). NaN objectives give NaN. Raises ValueError for a
    `cost_weight` outside [0, 1]. PareCO, section 3.2.
    """
    if not 0.0 <= cost_weight <= 1.0:
        raise ValueError(f"cost_weight must lie in [0, 1], got {cost_weight}")
    weighted = (objectives - reference) * objectives.new_tensor([1.0 - cost_weight, cost_weight])
    return torch.amax(weighted, dim=-1) + augmentation * weighted.sum(dim=-1)
