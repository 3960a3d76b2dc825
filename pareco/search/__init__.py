"""Multi-objective Bayesian optimization with random scalarizations; knows nothing of networks."""

from pareco.search.history import History
from pareco.search.mobo import Mobo, Origin, Proposal, SearchConfig
from pareco.search.scalarization import tchebyshev
from pareco.search.solver import ScalarizationSolver, search_cost_weight
from pareco.search.surrogate import Surrogate, SurrogateError
from pareco.search.targets import bin_masses, target_cost

__all__ = [
    "History",
    "Mobo",
    "Origin",
    "Proposal",
    "ScalarizationSolver",
    "SearchConfig",
    "Surrogate",
    "SurrogateError",
    "bin_masses",
    "search_cost_weight",
    "target_cost",
    "tchebyshev",
]
