"""The search on something that is no slimmable network: the README's example, as it stands."""

import torch
from botorch.utils.multi_objective.pareto import is_non_dominated
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from pareco import Mobo, SearchConfig

x, x_test, y, y_test = train_test_split(*load_digits(return_X_y=True), random_state=0)


def parameters(sizes: torch.Tensor) -> torch.Tensor:  # n x 2 -> n
    first, second = sizes.round().unbind(-1)
    return 65 * first + (first + 1) * second + 10 * (second + 1)


def loss(sizes: torch.Tensor) -> float:
    network = MLPClassifier([*map(int, sizes)], early_stopping=True, random_state=0)
    network.set_params(learning_rate_init=0.03, n_iter_no_change=3).fit(x, y)
    return log_loss(y_test, network.predict_proba(x_test))


def test_hidden_sizes_of_a_scikit_learn_network() -> None:
    config, generator = SearchConfig(solver="exact", initial_widths=5), torch.Generator()
    search = Mobo([2, 2], [40, 40], config, generator, cost=parameters, canonical=torch.round)
    while len(search.losses) < 16:
        for proposal in search.ask(2):
            search.tell(proposal.alpha, loss(proposal.alpha))
    for index in search.front():
        print(search.alphas[index].tolist(), search.costs[index], search.losses[index])

    points = torch.stack([search.losses, search.costs], dim=1)
    expected = is_non_dominated(points, maximize=False).nonzero().flatten().tolist()
    assert sorted(search.front()) == expected
    assert len(expected) >= 5
    assert len(search.alphas.unique(dim=0)) == 16
    assert torch.equal(search.alphas, search.alphas.round())
