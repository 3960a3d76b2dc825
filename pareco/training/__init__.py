"""Training: one step, one loop, one run."""

from pareco.training.folder import RunError, RunFolder
from pareco.training.outcomes import NonFiniteLoss, StepReport
from pareco.training.run import check_runnable, execute_run

__all__ = [
    "NonFiniteLoss",
    "RunError",
    "RunFolder",
    "StepReport",
    "check_runnable",
    "execute_run",
]
