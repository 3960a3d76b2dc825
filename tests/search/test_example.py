"""The search on something that is no slimmable network: the page on it, as it stands."""

from typing import Any

import torch
from botorch.utils.multi_objective.pareto import is_non_dominated

from tests.documents import python_in


def test_hidden_sizes_of_a_scikit_learn_network() -> None:
    example, told = python_in("search.md", 60)
    names: dict[str, Any] = {}
    exec(example, names)
    search = names["search"]
    points = torch.stack([search.losses, search.costs], dim=1)
    expected = is_non_dominated(points, maximize=False).nonzero().flatten().tolist()
    assert sorted(search.front()) == expected
    assert len(expected) >= 5
    assert len(search.alphas.unique(dim=0)) == 16
    assert torch.equal(search.alphas, search.alphas.round())

    exec(told, names)
    search = names["search"]
    assert search.alphas.sum(dim=1).tolist() == search.costs.tolist()
    assert len(search.costs) == 2
