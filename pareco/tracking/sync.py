"""What the W&B server lacks of the runs in a folder, brought there from the runs' own files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock, Timeout

from pareco.files import write_text
from pareco.tracking.mirror import (
    Publication,
    Row,
    answers,
    log_missing,
    show,
    started_mirror,
    told,
    wandb_settings,
    within,
)
from pareco.tracking.tracker import metrics_rows

_SILENCE_SECONDS = 30
_FINISH_SECONDS = 30


def sync_runs(
    runs: Path, *, project: str, publication: Callable[[Path], Publication]
) -> Iterator[tuple[Path, str]]:
    """Bring every mirrored run below a folder to the server; yield its folder and what went wrong.

    That is empty where all of the run is there. A run that a sync has seen there whole is passed
    over; of another one the server is asked what it has, and gets the later lines of
    `metrics.jsonl` and, if the run has finished, what `publication` makes of its folder. A run that
    is in use is left alone. Once the server no longer answers, the runs that are left fail. It
    needs a key, and a server that answers: see `unreachable`.
    """
    server, alive = wandb_settings().base_url, True
    for identifier in sorted(runs.glob("**/wandb/run_id")):
        folder, problem = identifier.parent.parent, ""
        try:
            with FileLock(folder / ".lock", timeout=0):
                if not _sync(folder, server, project, publication, alive):
                    continue
        except Timeout:
            problem = "the run is in use; sync again when it has ended"
        except Exception as error:
            alive = alive and answers(server)
            problem = told(error) if alive else f"{server} does not answer any more"
        yield folder, problem


def _sync(
    folder: Path,
    server: str,
    project: str,
    publication: Callable[[Path], Publication],
    alive: bool,
) -> bool:
    """Upload what the server lacks of a run; return whether it might have lacked something.

    Raises TimeoutError if it might, but is not `alive`.
    """
    rows = [row for _, row in metrics_rows(folder / "metrics.jsonl")]
    if not rows:
        return False
    finished = (folder / "DONE").exists()
    identifier = (folder / "wandb" / "run_id").read_text(encoding="utf-8")
    whole = {"server": server, "run": identifier, "last_step": rows[-1][0], "published": finished}
    file, mark = folder / "wandb" / "synced", json.dumps(whole) + "\n"
    if file.exists() and file.read_text(encoding="utf-8") == mark:
        return False
    if not alive:
        raise TimeoutError
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = publication(folder) if finished else None
    with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        run = started_mirror(
            "online", _FINISH_SECONDS, Path(scratch), config, id=identifier, project=project
        )
        last = _upload(run, rows, found, server)
    limit = time.monotonic() + _SILENCE_SECONDS
    while (there := within(_SILENCE_SECONDS, lambda: _last_step_there(run))) < last:
        if time.monotonic() > limit:
            raise ValueError(f"the server has the steps to {there} of {last}")
        time.sleep(1)  # it may count a little later what it got
    write_text(file, mark)
    return True


def _last_step_there(run: Any) -> int:
    """The last step of the history that the server has of a W&B run, finished or not, or -1."""
    import wandb

    return int(wandb.Api().run(run.path).lastHistoryStep)


def _upload(run: Any, rows: Sequence[Row], found: Publication | None, server: str) -> int:
    """Log what a W&B run lacks, wait for its files, and finish it; return its last step."""
    last = rows[-1][0]
    try:
        log_missing(run, rows)
        if found is not None:
            first, last = last + 1, last + 1 + len(found.front)
            for artifact in within(_SILENCE_SECONDS, lambda: show(found, run, first)):
                within(_SILENCE_SECONDS, artifact.wait, alive=lambda: answers(server))
    except Exception:
        with suppress(Exception):
            run.finish(exit_code=1)
        raise
    run.finish(exit_code=0 if found else 1)
    return last
