"""The progress of a sweep in the terminal: a bar for each run under way, a line for each ended."""

from __future__ import annotations

from typing import Literal, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pareco.training import StepReport

Ending = Literal["done", "failed", "interrupted"]
_SHOWN: dict[Ending, str] = {
    "done": "done   ",
    "failed": "[red]failed[/red] ",
    "interrupted": "[yellow]interrupted[/yellow]",
}


class SweepProgress:
    """Shows how runs get on, each by its name; `jobs` is their number in all.

    Use it in a `with` block.
    """

    def __init__(self, console: Console, jobs: int) -> None:
        """Prepare the display."""
        self._bars = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self._jobs, self._ended = jobs, 0
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        """Show the bars."""
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the bars."""
        self._bars.stop()

    def begin(self, name: str) -> None:
        """Show a bar for a run."""
        self._tasks[name] = self._bars.add_task(name, total=None, status="starting")

    def show(self, name: str, report: StepReport) -> None:
        """Show how far a run is."""
        self._bars.update(
            self._tasks[name],
            completed=report.step,
            total=report.steps,
            status=_status(report),
        )

    def end(self, name: str, ending: Ending) -> None:
        """Replace the bar of a run by a line that says how it ended."""
        self._ended += 1
        place = f"{self._ended} of {self._jobs} runs"
        self.say(f"{_SHOWN[ending]} {name} after {self._seconds(name):.0f} s, {place}")

    def retry(self, name: str) -> None:
        """Remove the bar of a run that was cut off, and say that it is tried again."""
        self._seconds(name)
        self.say(f"a worker was killed during {name}: it goes on, alone, after the others")

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(text)

    def _seconds(self, name: str) -> float:
        """Remove a bar and return how long it was there."""
        task = self._tasks.pop(name)
        seconds = self._bars.tasks[self._bars.task_ids.index(task)].elapsed or 0.0
        self._bars.remove_task(task)
        return seconds


def _status(report: StepReport) -> str:
    if report.step == report.steps:
        return "choosing and measuring"
    return (
        f"loss {report.loss_largest:.3f} / {report.loss_smallest:.3f}  "
        f"lr {report.learning_rate:.3f}  {report.images_per_second:.0f} images/s"
    )
