"""Training: one step, one loop, one run."""

from pareco.training.folder import RunError, RunFolder
from pareco.training.run import check_runnable, execute_run
from pareco.training.trainer import NonFiniteLoss, StepReport

__all__ = [
    "NonFiniteLoss",
    "RunError",
    "RunFolder",
    "StepReport",
    "check_runnable",
    "execute_run",
]
