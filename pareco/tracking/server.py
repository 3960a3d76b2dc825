"""The Weights & Biases server: whether it can be reached, and what it has of a run."""

import threading
import urllib.error
import urllib.request
from typing import Any

NO_KEY = "no API key is set"
_PROBE_SECONDS = 3.0


def unreachable() -> str | None:
    """Why W&B cannot be reached (no key, a malformed one, no answer in time); None if it can be.

    It never prompts.
    """
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
    """Whether an HTTP answer, other than of a server that is down (5xx), comes in time.

    It is asked for in a thread, as the look-up of a name has no time limit.
    """
    found: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(address, timeout=_PROBE_SECONDS).close()
            found.append(True)
        except urllib.error.HTTPError as error:
            error.close()
            found.append(error.code < 500)
        except Exception:
            found.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return bool(found) and found[0]


def last_step_there(path: str) -> int:
    """The last step of the history that the server has of a run, or -1 if it has none.

    `path` is `project/run` or `entity/project/run`. Raises wandb's CommError if it cannot say.
    """
    import wandb
    from wandb.errors import CommError

    try:
        run: Any = wandb.Api().run(path)
        return int(run.lastHistoryStep)
    except CommError as error:
        if "Could not find run" in str(error):
            return -1
        raise
