"""PareCO: slimmable networks with optimized widths (arXiv 2007.11752)."""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

# timm decorates functions with torch.jit.script on import, which new versions of torch deprecate.
warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)

if TYPE_CHECKING:
    from pareco.bundle import (
        BudgetError,
        Bundle,
        BundleError,
        ExportError,
        FrontNetwork,
        load,
        save_bundle,
    )
    from pareco.config import SearchConfig
    from pareco.cost import CostModel
    from pareco.methods import Method
    from pareco.search import Mobo
    from pareco.slimmable import SlimmableNet, calibrated_statistics, make_slimmable
    from pareco.widths import Widths, WidthSpace

_PLACES = {
    "BudgetError": "pareco.bundle",
    "Bundle": "pareco.bundle",
    "BundleError": "pareco.bundle",
    "ExportError": "pareco.bundle",
    "FrontNetwork": "pareco.bundle",
    "CostModel": "pareco.cost",
    "Method": "pareco.methods",
    "Mobo": "pareco.search",
    "SearchConfig": "pareco.config",
    "SlimmableNet": "pareco.slimmable",
    "WidthSpace": "pareco.widths",
    "Widths": "pareco.widths",
    "calibrated_statistics": "pareco.slimmable",
    "load": "pareco.bundle",
    "make_slimmable": "pareco.slimmable",
    "save_bundle": "pareco.bundle",
}

__all__ = [
    "BudgetError",
    "Bundle",
    "BundleError",
    "CostModel",
    "ExportError",
    "FrontNetwork",
    "Method",
    "Mobo",
    "SearchConfig",
    "SlimmableNet",
    "WidthSpace",
    "Widths",
    "calibrated_statistics",
    "load",
    "make_slimmable",
    "save_bundle",
]


def __getattr__(name: str) -> Any:
    """Return a public name, whose module is imported on first use."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    """Return the public names too."""
    return sorted({*globals(), *__all__})
