"""The tiny experiment as a folder of replications, for the tests of their commands."""

from tests.experiments import TINY

EXPERIMENT = TINY
