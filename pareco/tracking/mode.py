"""The mode of Weights & Biases, chosen so that it never prompts and never waits for long."""

import logging
import os

from pareco.tracking.server import NO_KEY, unreachable

_LOGGER = logging.getLogger(__name__)


def wandb_mode() -> str:
    """`online`, `offline` or `disabled`: what `WANDB_MODE` or W&B's settings say, else what works.

    A warning is logged where online was asked for, or a key is there, and it cannot be.
    """
    asked = os.environ.get("WANDB_MODE", "")
    if asked == "disabled":
        return asked
    # W&B's reports on itself would hold a process at its end for seconds when the server is gone.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    if asked in ("offline", "dryrun"):
        return "offline"
    import wandb

    settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
    if settings.mode in ("offline", "disabled"):
        return settings.mode
    problem = unreachable()
    if problem is None:
        return "online"
    if asked == "online":
        _LOGGER.warning("WANDB_MODE=online, but %s: recording offline", problem)
    elif problem != NO_KEY:
        _LOGGER.warning("recording offline, as %s", problem)
    return "offline"
