"""The run in Weights & Biases beside the record; it can neither block nor break a run."""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pareco.files import write_text
from pareco.tracking.sync import last_step, mark_synced, recorded_parts, run_id

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

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


COST, ERROR = "front/cost", "front/error"
_COPIED_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What a run has found."""

    front: pd.DataFrame
    """One row per network: shown as a table, and its `cost` and `error` as points of a plot."""

    cost: str
    """The column of the front that plots have as their axis."""

    error: str = "test_top1_error"
    """The column of the front that plots have over it."""

    figures: Mapping[str, Figure] = field(default_factory=dict)
    """Figures by name, shown as images."""

    artifacts: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    """Files by type, such as `model`: one artifact each, named after the run and the type."""

    summary: Mapping[str, float | str | None] = field(default_factory=dict)
    """The final numbers."""


def show(publication: Publication, run: Any, step: int) -> None:
    """Log a publication to a W&B run, its rows of history from `step` on.

    The points of the front, one row each, can be plotted as a line: `front/error` over
    `front/cost`.
    """
    import wandb

    front = publication.front.sort_values(publication.cost, kind="stable")
    define_curve(run, COST, [ERROR])
    points = zip(front[publication.cost], front[publication.error], strict=True)
    for at, (cost, error) in enumerate(points, start=step):
        run.log({COST: float(cost), ERROR: float(error)}, step=at)
    images = {f"figures/{name}": _image(figure) for name, figure in publication.figures.items()}
    table = wandb.Table(dataframe=front.reset_index(drop=True))
    run.log({"front/networks": table, **images}, step=step + len(front))
    for kind, files in publication.artifacts.items():
        artifact = wandb.Artifact(f"{run.id}-{kind}", type=kind)
        for file in files:
            # A large file is uploaded from where it lies: copies in W&B's folder are never removed.
            large = file.stat().st_size > _COPIED_BYTES
            artifact.add_file(str(file.resolve()), policy="immutable" if large else "mutable")
        run.log_artifact(artifact)
    run.summary.update(dict(publication.summary))


def define_curve(run: Any, axis: str, metrics: Sequence[str]) -> None:
    """Have some metrics of a W&B run plotted over another one in place of the step."""
    run.define_metric(axis, hidden=True)
    for metric in metrics:
        run.define_metric(metric, step_metric=axis)


def _image(figure: Figure) -> Any:
    import wandb
    from PIL import Image

    content = BytesIO()
    figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    return wandb.Image(Image.open(content), file_type="png")


T = TypeVar("T")
_LOGGER = logging.getLogger(__name__)
_ONLINE_START_SECONDS = 15
_FLUSH_SECONDS = 1.0
_WRITE_SECONDS = 2.0
_FINISH_SECONDS = 10
_PUBLISH_SECONDS = 30.0


class Mirror:
    """The W&B run beside the record; its first exception is logged and ends it."""

    def __init__(self, folder: Path, *, resumed: bool, run_arguments: dict[str, Any]) -> None:
        self._run: Any = None
        self._online = False
        self._last = -1  # the last step that W&B has
        self._logged = -1  # the last step that was logged since the start
        self._data_folder_before = os.environ.get("WANDB_DATA_DIR")
        with self._contained():
            mode = wandb_mode()
            _LOGGER.info("W&B mode for %s: %s", folder, mode)
            if mode != "disabled":
                os.environ["WANDB_DATA_DIR"] = str(folder / "wandb")
                identifier = _run_identifier(folder, resumed)
                before = _last_recorded(folder, identifier) if mode == "offline" else -1
                self._start = partial(_started_run, folder, identifier, run_arguments)
                self._run = self._start(mode)
                self._online = mode == "online"
                self._last = self._run.starting_step - 1 if self._online else before

    def catch_up(self, lines: Iterable[Mapping[str, float | None]]) -> None:
        """Show the lines of the record that the mirror lacks, as it was killed or not there."""
        if self._run is None:
            return
        for line in lines:
            values = {name: math.nan if v is None else v for name, v in line.items()}
            self.log(int(values.pop("step")), values)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show scalars at a step, unless it has that step already."""
        if self._run is not None and step > self._last:
            with self._contained():
                self._run.log(dict(values), step=step)
                self._last = self._logged = step

    def publish(self, make: Callable[[], Publication]) -> None:
        """Show what a run has found; give up after a time, as W&B may wait for a dead server."""
        if self._run is None:
            return
        with self._contained():
            publication = make()
            if self._online and not answers(self._run.settings.base_url):
                self._go_on_offline()
            run = self._run
            first = self._last + 1
            self._last = self._logged = first + len(publication.front)
            _within(_PUBLISH_SECONDS, lambda: show(publication, run, first))

    def _go_on_offline(self) -> None:
        """Begin a part without the server, which would be asked before any file is recorded."""
        _LOGGER.warning("W&B does not answer any more: the front is recorded offline")
        with suppress(TimeoutError):
            self._run.finish()
        self._run = self._start("offline")
        self._online = False

    def close(self, failed: bool) -> None:
        """Finish the run; what has not been uploaded in time stays in its folder."""
        if self._run is not None:
            with self._contained():
                self._run.finish(exit_code=int(failed))
                self._check_written(Path(self._run.settings.sync_file))
        self._run = None
        if self._data_folder_before is None:
            os.environ.pop("WANDB_DATA_DIR", None)
        else:
            os.environ["WANDB_DATA_DIR"] = self._data_folder_before

    def _check_written(self, part: Path) -> None:
        """Say so where W&B's own file lacks rows, as W&B does not; mark it if all has arrived."""
        patience = time.monotonic() + _WRITE_SECONDS
        while (written := last_step([part])) < self._logged and time.monotonic() < patience:
            time.sleep(0.1)  # it is written to the end a little after `finish`
        if written < self._logged:
            _LOGGER.warning(
                "W&B's file ends at step %d of %d (is the disk full?): %s",
                written,
                self._last,
                part,
            )
        elif self._online and _within(_FINISH_SECONDS, self._last_there) >= self._last:
            mark_synced(part)

    def _last_there(self) -> int:
        run = self._run
        return last_step_there(f"{run.entity}/{run.project}/{run.id}")

    @contextmanager
    def _contained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._run = None
            reason = next(iter(str(error).splitlines()), "")
            _LOGGER.warning(
                "W&B mirroring stopped (metrics.jsonl goes on): %s: %s",
                type(error).__name__,
                reason,
            )


def quiet_settings(**more: Any) -> Any:
    """Return W&B settings that print nothing and look neither at the code nor at the machine."""
    import wandb

    return wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        x_disable_meta=True,
        x_disable_stats=True,
        **more,
    )


def _started_run(folder: Path, identifier: str, run_arguments: Mapping[str, Any], mode: str) -> Any:
    import wandb

    settings = quiet_settings(
        x_transaction_log_flush_interval=_FLUSH_SECONDS,
        init_timeout=_ONLINE_START_SECONDS,
        finish_timeout=_FINISH_SECONDS,
        finish_timeout_raises=True,
    )
    return wandb.init(
        **run_arguments,
        id=identifier,
        dir=folder,
        mode="online" if mode == "online" else "offline",
        resume="allow" if mode == "online" else None,
        reinit="create_new",
        settings=settings,
    )


def _last_recorded(folder: Path, identifier: str) -> int:
    """The last step in the earlier parts of a run, or -1: W&B's own count starts anew offline."""
    return last_step(part for part in recorded_parts(folder) if run_id(part) == identifier)


def _run_identifier(folder: Path, resumed: bool) -> str:
    """The id stored in the run's folder, or else experiment-method-seed with a random ending.

    The ending keeps a second run of the same experiment, elsewhere or from the start, apart.
    """
    stored = folder / "wandb" / "run_id"
    if resumed and stored.exists():
        return stored.read_text(encoding="utf-8")
    words = re.sub(r"[^A-Za-z0-9_-]+", "-", "-".join(folder.parts[-3:])).strip("-")
    identifier = f"{words[-100:]}-{uuid.uuid4().hex[:8]}"
    stored.parent.mkdir(exist_ok=True)
    write_text(stored, identifier)
    return identifier


def _within(seconds: float, work: Callable[[], T]) -> T:
    """What some work returns or raises, in a thread; TimeoutError, leaving it, after a time."""
    returned: list[T] = []
    raised: list[Exception] = []

    def guarded() -> None:
        try:
            returned.append(work())
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not returned:
        raise TimeoutError(f"no answer within {seconds:.0f} seconds")
    return returned[0]
