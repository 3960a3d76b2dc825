"""Methods: how the widths to train, to visit and to report are chosen."""

from pareco.methods.base import Method, Task
from pareco.methods.registry import method_named, methods_in
from pareco.methods.visits import Visit
from pareco.methods.width_search import WidthSearch

__all__ = ["Method", "Task", "Visit", "WidthSearch", "method_named", "methods_in"]
