"""Multi-objective Bayesian optimization with random scalarizations; knows nothing of networks."""

from pareco.search.mobo import History, Mobo, Origin, Proposal

__all__ = ["History", "Mobo", "Origin", "Proposal"]
