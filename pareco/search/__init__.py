"""Multi-objective Bayesian optimization with random scalarizations; knows nothing of networks."""

from pareco.search.mobo import Mobo, Origin, Proposal, front

__all__ = ["Mobo", "Origin", "Proposal", "front"]
