"""The record of a run's scalars (`metrics.jsonl`) and its mirror in Weights & Biases."""

import json
import logging
import math
import os
import re
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pareco.files import write_text

_LOGGER = logging.getLogger(__name__)
_PROBE_SECONDS = 3.0
_ONLINE_START_SECONDS = 15
_FINISH_SECONDS = 10


class Tracker:
    """The scalars of one run: written to `folder/metrics.jsonl`, mirrored to W&B.

    The record has one JSON object per line, `{"step": ..., name: value, ...}`, and is flushed
    after each; a non-finite value is written as null. Without `resume_from` it starts empty. With
    `resume_from=s`, lines of step >= s and a torn last line are dropped first, so that it reads as
    if the run had never been interrupted; a broken line elsewhere raises ValueError.

    The mirror obeys `WANDB_MODE`; unless that says `offline` or `disabled` it is online where a
    key is present and the server answers, else offline in `folder/wandb`. It never prompts, and
    its first exception is logged and ends it without reaching the caller.
    """

    def __init__(
        self,
        folder: Path,
        *,
        project: str,
        group: str,
        job_type: str,
        name: str,
        config: Mapping[str, Any],
        resume_from: int | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        kept = [] if resume_from is None else _lines_before(path, resume_from)
        write_text(path, "".join(kept))
        self._record = path.open("a", encoding="utf-8")
        self._mirror = _Mirror(
            folder.resolve(),
            resumed=resume_from is not None,
            run_arguments={
                "project": project,
                "group": group,
                "job_type": job_type,
                "name": name,
                "config": dict(config),
            },
        )

    def log(self, step: int, **scalars: float) -> None:
        """Append one line of scalars (numbers or one-element arrays) at `step`.

        Steps must not decrease: W&B drops what arrives for an earlier step; the record keeps it.
        """
        values = {name: _number(value) for name, value in scalars.items()}
        finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
        self._record.write(json.dumps({"step": int(step), **finite}, allow_nan=False) + "\n")
        self._record.flush()
        self._mirror.log(int(step), values)

    def close(self, *, failed: bool = False) -> None:
        """Close the record and finish the mirror, as failed if so; a second call does nothing."""
        if not self._record.closed:
            self._record.close()
            self._mirror.close(failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(failed=kind is not None)


class _Mirror:
    """The W&B run beside the record; its first exception is logged and ends it."""

    def __init__(self, folder: Path, *, resumed: bool, run_arguments: dict[str, Any]) -> None:
        self._run = None
        self._data_folder_before = os.environ.get("WANDB_DATA_DIR")
        with self._contained():
            mode = _wandb_mode()
            _LOGGER.info("W&B mode for %s: %s", folder, mode)
            if mode != "disabled":
                os.environ["WANDB_DATA_DIR"] = str(folder / "wandb")
                self._run = _started_run(folder, mode, resumed, run_arguments)

    def log(self, step: int, values: dict[str, float]) -> None:
        if self._run is not None:
            with self._contained():
                self._run.log(values, step=step)

    def close(self, failed: bool) -> None:
        if self._run is not None:
            with self._contained():
                self._run.finish(exit_code=int(failed))
        self._run = None
        if self._data_folder_before is None:
            os.environ.pop("WANDB_DATA_DIR", None)
        else:
            os.environ["WANDB_DATA_DIR"] = self._data_folder_before

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


def _started_run(folder: Path, mode: str, resumed: bool, run_arguments: dict[str, Any]) -> Any:
    import wandb

    settings = wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        x_disable_meta=True,
        x_disable_stats=True,
        init_timeout=_ONLINE_START_SECONDS,
        finish_timeout=_FINISH_SECONDS,
        finish_timeout_raises=False,
    )
    return wandb.init(
        **run_arguments,
        id=_run_identifier(folder, resumed),
        dir=folder,
        mode="online" if mode == "online" else "offline",
        resume="allow" if mode == "online" else None,
        reinit="create_new",
        settings=settings,
    )


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


def _wandb_mode() -> str:
    asked = os.environ.get("WANDB_MODE", "")
    if asked == "disabled":
        return asked
    if asked in ("offline", "dryrun"):
        return "offline"
    import wandb
    from wandb.errors import AuthenticationError

    settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
    if settings.mode in ("offline", "disabled"):
        return settings.mode
    try:
        key_present = wandb.login(prompt=False, verify=False)
    except AuthenticationError as error:
        _LOGGER.warning("recording offline, as the API key is malformed: %s", error)
        return "offline"
    if key_present and _answers(settings.base_url):
        return "online"
    if asked == "online":
        missing = f"{settings.base_url} does not answer" if key_present else "no API key is set"
        _LOGGER.warning("WANDB_MODE=online, but %s: recording offline", missing)
    elif key_present:
        _LOGGER.warning("recording offline, as %s does not answer", settings.base_url)
    return "offline"


def _answers(address: str) -> bool:
    """Whether any HTTP answer comes in time; in a thread, as name look-up has no time limit."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(address, timeout=_PROBE_SECONDS).close()
            answers.append(True)
        except urllib.error.HTTPError as error:
            error.close()
            answers.append(True)
        except Exception:
            answers.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return bool(answers) and answers[0]


def _number(value: float) -> float:
    return value if isinstance(value, int) else float(value)


def _lines_before(path: Path, step: int) -> list[str]:
    """The record's whole lines with an earlier step; a last line that is no JSON is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            recorded = json.loads(line)["step"]
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number} is not a record: {line!r}") from error
        if recorded < step:
            kept.append(line + "\n")
    return kept
