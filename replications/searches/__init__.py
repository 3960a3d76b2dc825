"""Searches compared at equal numbers of evaluations, on problems of known fronts and networks."""
