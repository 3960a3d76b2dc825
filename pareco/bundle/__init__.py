"""A finished run as one file, and networks out of it within a budget."""

from pareco.bundle.export import ExportError
from pareco.bundle.sealed import BundleError
from pareco.bundle.serving import BudgetError, Bundle, load
from pareco.bundle.shipping import FrontNetwork, save_bundle

__all__ = [
    "BudgetError",
    "Bundle",
    "BundleError",
    "ExportError",
    "FrontNetwork",
    "load",
    "save_bundle",
]
