"""The mirror: the W&B run beside the metrics file, which can neither block nor break a run."""

from __future__ import annotations

import logging
import os
import re
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pareco.files import write_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

T = TypeVar("T")
Row = tuple[int, Mapping[str, Any]]
"""A step, and what is logged at it."""

NO_KEY = "no API key is set: run `wandb login`, or set WANDB_API_KEY"
_COST, _ERROR = "front/cost", "front/error"
_PROBE_SECONDS = 3.0
_START_SECONDS = 30
_PUBLISH_SECONDS = 30.0
_FINISH_SECONDS = 10
_LOGGER = logging.getLogger(__name__)


def wandb_settings() -> Any:
    """W&B's settings, from its files and the environment: `base_url`, the server, and others."""
    # W&B's reports on itself would hold a process at its end for seconds when the server is gone.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb.setup(settings=wandb.Settings(silent=True)).settings


def unreachable() -> str | None:
    """Why W&B cannot be reached (no key, a malformed one, no answer in time); None if it can be.

    It never prompts.
    """
    address = wandb_settings().base_url
    import wandb
    from wandb.errors import AuthenticationError

    try:
        if not wandb.login(prompt=False, verify=False):
            return NO_KEY
    except AuthenticationError as error:
        return f"the API key is malformed: {error}"
    return None if answers(address) else f"{address} does not answer"


def answers(address: str) -> bool:
    """Whether an HTTP answer, other than of a server that is down (5xx), comes in time."""
    open_in_time = partial(urllib.request.urlopen, address, timeout=_PROBE_SECONDS)
    try:  # in time, as the look-up of a name has no limit of its own
        within(_PROBE_SECONDS, open_in_time).close()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code < 500
    except Exception:
        return False
    return True


def within(seconds: float, work: Callable[[], T], alive: Callable[[], bool] | None = None) -> T:
    """What some work returns or raises, in a thread; TimeoutError, leaving it, after a time.

    The time starts again where `alive` then says that it may go on.
    """
    future: Future[T] = Future()

    def guarded() -> None:
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=guarded, daemon=True).start()
    while not wait([future], seconds).done:
        if not (alive and alive()):
            raise TimeoutError(f"no answer within {seconds:.0f} seconds")
    return future.result()


def wandb_mode() -> str:
    """`online`, `offline` or `disabled`: what `WANDB_MODE` or W&B's settings say, else what works.

    A warning is logged where online was asked for, or a key is there, and it cannot be.
    """
    asked = os.environ.get("WANDB_MODE", "")
    configured = asked if asked == "disabled" else wandb_settings().mode
    if configured in ("disabled", "offline", "dryrun"):
        return "disabled" if configured == "disabled" else "offline"
    problem = unreachable()
    if problem and (asked == "online" or problem != NO_KEY):
        _LOGGER.warning("recording offline, as %s", problem)
    return "offline" if problem else "online"


def started_run(mode: str, finish_seconds: int, **arguments: Any) -> Any:
    """A W&B run that prints nothing and goes on where its id has got to on the server.

    `arguments` are those of `wandb.init`. Its start and its end raise after a time. Files on their
    way are kept in its `dir`, not in the home folder.
    """
    import wandb

    os.environ["WANDB_DATA_DIR"] = str(Path(arguments["dir"], "wandb"))
    settings = wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        init_timeout=_START_SECONDS,
        finish_timeout=finish_seconds,
        finish_timeout_raises=True,
    )
    return wandb.init(
        **arguments,
        mode="online" if mode == "online" else "offline",
        resume="allow" if mode == "online" else None,
        reinit="create_new",
        settings=settings,
    )


def started_mirror(
    mode: str, finish_seconds: int, folder: Path, config: Mapping[str, Any], **arguments: Any
) -> Any:
    """A `started_run` named by the experiment, method and seed of its configuration."""
    method = config["method"]
    names = {"group": config["name"], "job_type": method, "name": f"{method}-seed{config['seed']}"}
    return started_run(mode, finish_seconds, dir=folder, config=dict(config), **names, **arguments)


def log_missing(run: Any, rows: Iterable[Row]) -> None:
    """Log the rows that come after the steps that the server had when a W&B run was started."""
    for step, values in rows:
        if step >= run.starting_step:
            run.log(dict(values), step=step)


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What a run has found."""

    front: pd.DataFrame
    """One row per network: a table, and its `cost` and `test_top1_error` as points of a plot."""

    cost: str
    """The column of the front that plots have as their axis."""

    figures: Mapping[str, Figure] = field(default_factory=dict)
    """Figures by name, shown as images."""

    artifacts: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    """Files by type, such as `model`: one artifact each, named after the run and the type."""

    summary: Mapping[str, float | str | None] = field(default_factory=dict)
    """The final numbers."""

    def rows(self, first: int) -> Iterator[Row]:
        """Yield the points of the front from step `first` on, then its table with the figures.

        The points, one row each, can be plotted as a line: `front/error` over `front/cost`.
        """
        import wandb
        from PIL import Image

        front = self.front.sort_values(self.cost, kind="stable", ignore_index=True)
        points = zip(front[self.cost], front["test_top1_error"], strict=True)
        for step, (cost, error) in enumerate(points, start=first):
            yield step, {_COST: float(cost), _ERROR: float(error)}
        shown: dict[str, Any] = {"front/networks": wandb.Table(dataframe=front)}
        for name, figure in self.figures.items():
            figure.savefig(content := BytesIO(), format="png", dpi=150, metadata={"Software": None})
            shown[f"figures/{name}"] = wandb.Image(Image.open(content), file_type="png")
        yield first + len(front), shown


def show(publication: Publication, run: Any, first: int) -> list[Any]:
    """Log a publication to a W&B run, from step `first` on; return the artifacts under way.

    Shown again, no row is logged twice, and W&B keeps one version of an artifact for the same
    files.
    """
    import wandb

    define_curve(run, _COST, _ERROR)
    log_missing(run, publication.rows(first))
    artifacts = []
    for kind, files in publication.artifacts.items():
        artifact = wandb.Artifact(f"{run.id}-{kind}", type=kind)
        for file in files:  # uploaded from where they lie: W&B never removes its copies
            artifact.add_file(str(file.resolve()), policy="immutable")
        artifacts.append(run.log_artifact(artifact))
    run.summary.update(dict(publication.summary))
    return artifacts


def define_curve(run: Any, axis: str, metrics: str) -> None:
    """Have metrics of a W&B run (a name, or a pattern) plotted over another, not the step."""
    run.define_metric(axis, hidden=True)
    run.define_metric(metrics, step_metric=axis)


class Mirror:
    """The W&B run beside the metrics file; its first exception is logged and ends it."""

    def __init__(
        self,
        folder: Path,
        earlier: Sequence[Row],
        *,
        resumed: bool,
        project: str,
        config: Mapping[str, Any],
    ) -> None:
        """Start a run, or go on with the one of the folder; show `earlier` rows that it lacks.

        It may lack them as the mirror was killed or not there. Offline nothing is shown again:
        each start of a run has a folder of W&B's own.
        """
        self._run: Any = None
        self._mode = "disabled"
        self._last_step = earlier[-1][0] if earlier else -1  # of the metrics file
        with self._contained():
            self._mode = wandb_mode()
            _LOGGER.info("W&B mode for %s: %s", folder, self._mode)
            if self._mode != "disabled":
                identifier = _run_identifier(folder, resumed)
                self._run = started_mirror(
                    self._mode, _FINISH_SECONDS, folder, config, id=identifier, project=project
                )
            if self._mode == "online":
                log_missing(self._run, earlier)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show scalars at a step, unless the server has had that step before."""
        if self._run is not None:
            self._last_step = step
            with self._contained():
                log_missing(self._run, [(step, values)])

    def publish(self, make: Callable[[], Publication]) -> None:
        """Show what a run has found; give up after a time, as W&B may wait for a dead server."""
        if self._run is None:
            return
        with self._contained():
            publication, run, first = make(), self._run, self._last_step + 1
            if self._mode == "online" and not answers(run.settings.base_url):
                _LOGGER.warning("W&B does not answer any more: wandb-sync can publish the front")
                return
            within(_PUBLISH_SECONDS, lambda: show(publication, run, first))

    def close(self, failed: bool) -> None:
        """Finish the run; what has not been uploaded in time is left to `wandb-sync`."""
        if self._run is not None:
            with self._contained():
                self._run.finish(exit_code=int(failed))
        self._run = None

    @contextmanager
    def _contained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._run = None
            _LOGGER.warning(
                "W&B mirroring stopped (metrics.jsonl goes on; wandb-sync uploads the rest): %s",
                told(error),
            )


def told(error: Exception) -> str:
    """What an exception of wandb says, in one line."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


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
