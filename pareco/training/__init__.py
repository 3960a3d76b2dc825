"""Training: one step, one loop, one run."""

from pareco.training.run_folder import RunError
from pareco.training.runner import execute_run
from pareco.training.trainer import NonFiniteLoss, StepReport

__all__ = ["NonFiniteLoss", "RunError", "StepReport", "execute_run"]
