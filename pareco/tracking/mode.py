"""Whether Weights & Biases can be reached, and the mode that follows; nothing here ever prompts."""

import logging
import os
import threading
import urllib.error
import urllib.request

_LOGGER = logging.getLogger(__name__)
_PROBE_SECONDS = 3.0


def wandb_mode() -> str:
    """`online`, `offline` or `disabled`: what `WANDB_MODE` or W&B's settings say, else what works.

    A warning is logged where online was asked for, or a key is there, and it cannot be.
    """
    asked = os.environ.get("WANDB_MODE", "")
    if asked == "disabled":
        return asked
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


NO_KEY = "no API key is set"


def unreachable() -> str | None:
    """Why W&B cannot be reached (no key, a malformed one, no answer in time); None if it can be."""
    import wandb
    from wandb.errors import AuthenticationError

    settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
    try:
        if not wandb.login(prompt=False, verify=False):
            return NO_KEY
    except AuthenticationError as error:
        return f"the API key is malformed: {error}"
    return None if answers(settings.base_url) else f"{settings.base_url} does not answer"


def answers(address: str) -> bool:
    """Whether any HTTP answer comes in time; in a thread, as name look-up has no time limit."""
    found: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(address, timeout=_PROBE_SECONDS).close()
            found.append(True)
        except urllib.error.HTTPError as error:
            error.close()
            found.append(True)
        except Exception:
            found.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return bool(found) and found[0]
