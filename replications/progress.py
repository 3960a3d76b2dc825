"""The progress of a sweep in the terminal: a bar for each run under way, a line for each ended."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pareco.training import StepReport

_SECONDS_TO_HEAR = 1.0


class SweepProgress:
    """Shows what workers put into `messages`: (name of a run, report of a step or None at first).

    Use it in a `with` block; `jobs` is the number of runs in all.
    """

    def __init__(self, console: Console, messages: Any, jobs: int) -> None:
        """Prepare the display."""
        self._bars = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self._messages, self._jobs = messages, jobs
        self._tasks: dict[str, TaskID] = {}
        self._ended: set[str] = set()
        self._lock = threading.Lock()
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        """Start to listen."""
        self._bars.start()
        self._listener.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop listening and remove the bars."""
        self._messages.put(None)
        self._messages.cancel_join_thread()
        self._listener.join(timeout=5)
        self._bars.stop()

    def underway(self) -> set[str]:
        """Return the runs that workers have begun and not ended."""
        time.sleep(_SECONDS_TO_HEAR)  # their last messages may be on their way
        with self._lock:
            return set(self._tasks)

    def end(self, name: str, *, failed: bool) -> None:
        """Replace the bar of a run by a line that says how it ended; once for each run."""
        with self._lock:
            if name in self._ended:
                return
            self._ended.add(name)
            task, seconds = self._tasks.pop(name, None), 0.0
            if task is not None:
                seconds = self._bars.tasks[self._bars.task_ids.index(task)].elapsed or 0.0
                self._bars.remove_task(task)
        how = "[red]failed[/red] " if failed else "done   "
        place = f"{len(self._ended)} of {self._jobs} runs"
        self._bars.console.print(f"{how} {name} after {seconds:.0f} s, {place}")

    def retry(self, name: str) -> None:
        """Say that a run was cut off and is tried again."""
        with self._lock:
            if (task := self._tasks.pop(name, None)) is not None:
                self._bars.remove_task(task)
        self._bars.console.print(f"a worker was killed during {name}: it goes on, alone")

    def _listen(self) -> None:
        while True:
            try:
                message = self._messages.get(timeout=1)
            except queue.Empty:
                continue
            if message is None:
                return
            self._show(*message)

    def _show(self, name: str, report: StepReport | None) -> None:
        with self._lock:
            if name in self._ended:
                return
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=None, status="starting")
            if report is not None:
                done, total = report.step, report.steps
                self._bars.update(
                    self._tasks[name], completed=done, total=total, status=_status(report)
                )


def _status(report: StepReport) -> str:
    if report.step == report.steps:
        return "choosing and measuring"
    return (
        f"loss {report.loss_largest:.3f} / {report.loss_smallest:.3f}  "
        f"lr {report.learning_rate:.3f}  {report.images_per_second:.0f} images/s"
    )
