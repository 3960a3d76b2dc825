"""Training: one step, one loop, one run."""

from pareco.training.latency import measure_latencies
from pareco.training.run_folder import RunError, RunFolder
from pareco.training.runner import check_runnable, execute_run
from pareco.training.trainer import NonFiniteLoss, StepReport

__all__ = [
    "NonFiniteLoss",
    "RunError",
    "RunFolder",
    "StepReport",
    "check_runnable",
    "execute_run",
    "measure_latencies",
]
