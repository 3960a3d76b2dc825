"""Multi-objective Bayesian optimization with random scalarizations; knows nothing of networks."""

from pareco.search.mobo import History, Mobo, Origin, Proposal
from pareco.search.solver import (
    ScalarizationSolver,
    bin_masses,
    search_cost_weight,
    target_cost,
    tchebyshev,
)
from pareco.search.surrogate import Surrogate, SurrogateError

__all__ = [
    "History",
    "Mobo",
    "Origin",
    "Proposal",
    "ScalarizationSolver",
    "Surrogate",
    "SurrogateError",
    "bin_masses",
    "search_cost_weight",
    "target_cost",
    "tchebyshev",
]
