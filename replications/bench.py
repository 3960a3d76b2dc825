"""The command `bench`: what running many widths of one network costs beyond running plain ones.

And what the search takes: `replications.bench_search`; a deployed network:
`replications.bench_deployed`; on a GPU: `replications.bench_gpu`.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

from pareco.files import write_text

if TYPE_CHECKING:
    from replications.bench_deployed import DeployedRow
    from replications.bench_gpu import GpuRow
    from replications.bench_search import SearchRow

    Rows = Sequence["BenchRow"] | Sequence[SearchRow] | Sequence[GpuRow] | Sequence[DeployedRow]


@dataclass(frozen=True, kw_only=True)
class BenchCase:
    """A network, and the batches that it is timed on; `inner` passes make one repetition.

    Memory is measured at `held_size`, where given: with few small images most of it is weights,
    and copies of their slices.
    """

    network: str
    image_size: int
    images: int
    channels: int = 3
    base_width: int | None = None
    inner: int = 1
    refreshed: int = 100
    held_size: int | None = None

    def held(self) -> BenchCase:
        """Return the case whose memory is measured."""
        return replace(self, image_size=self.held_size or self.image_size, refreshed=0)


CASES = (
    BenchCase(network="cifar_resnet8", image_size=8, images=64, channels=1, base_width=6, inner=5),
    BenchCase(network="cifar_resnet20", image_size=16, images=32),
    BenchCase(network="mobilenetv2_100", image_size=32, images=8, held_size=224),
    BenchCase(network="mobilenetv3_large_100", image_size=32, images=8, held_size=224),
)
GOALS = {"sandwich step": 1.1, "sandwich memory": 1.1, "refresh": 1.1, "switch (ms)": 0.2}
SWITCHES = 500


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """The median over repetitions of a ratio, or of milliseconds, with its quartiles.

    Less is better. The step is timed against the same step of extracted networks, the refresh
    against as many plain forward passes; memory is the most held at once, against that of the
    largest network alone.
    """

    what: str
    network: str
    image_size: int
    images: int
    median: float
    lower: float
    upper: float
    repetitions: int
    goal: float

    @property
    def met(self) -> bool:
        """Whether the median reaches its goal."""
        return self.median <= self.goal


@dataclass(frozen=True, kw_only=True)
class BenchCommand:
    """Time sandwich steps, refreshes and switches against plain networks, and the search's asks.

    By one thread of a CPU; deployed networks too. Tables, and `bench/step.csv`, `bench/search.csv`
    and `bench/deployed.csv` in the results, with the environment beside each. On a GPU:
    `bench/gpu.csv`, of training steps.
    """

    results: Path = Path("results")
    """Folder of all results."""

    repetitions: int = 9
    """How often a step is timed, in turns with what it is compared with."""

    only: Literal["step", "search", "deployed"] | None = None
    """Measure one of them: steps, refreshes and switches, the search's asks and its share, or
    deployed networks: extracted, switched, compiled, and in ONNX Runtime."""

    device: Literal["cpu", "cuda"] = "cpu"
    """cuda: in place of all that, time training steps on a GPU: as they are, as CUDA graphs
    (--training.cuda-graphs), in bf16, and both; and a refresh."""

    def carried_out(self, console: Console) -> int:
        """Write and print the tables; return 0, or 1 if a goal is missed."""
        if self.repetitions < 2:
            raise ValueError(f"--repetitions must be at least 2, got {self.repetitions}")
        if self.device != "cpu":
            return self._on_a_gpu(console)
        met = True
        if self.only in (None, "step"):
            steps = [row for case in CASES for row in measured(case, self.repetitions)]
            self._write("step", steps)
            console.print(as_table(steps))
            met = all(row.met for row in steps)
        if self.only in (None, "search"):
            from replications.bench_search import measured_search

            asks = measured_search()
            self._write("search", asks)
            console.print(as_search_table(asks))
            met = met and all(row.met for row in asks)
        if self.only in (None, "deployed"):
            from pareco.reporting.rendering import markdown_table
            from replications.bench_deployed import deployed_table, measured_networks

            deployed = measured_networks(self.repetitions)
            self._write("deployed", deployed)
            console.out(markdown_table(deployed_table(self.results)))
            met = met and all(row.met for row in deployed)
        return int(not met)

    def _on_a_gpu(self, console: Console) -> int:
        if self.only is not None:
            raise ValueError("--only is of the CPU's measurements: leave out it, or --device cuda")
        from pareco.processes import joined_processes
        from replications.bench_gpu import as_gpu_table, measured_steps

        rows = measured_steps(joined_processes("auto"), self.repetitions)
        self._write("gpu", rows)
        console.print(as_gpu_table(rows))
        return 0

    def _write(self, name: str, rows: Rows) -> None:
        from pareco.processes import joined_processes
        from pareco.training.environment import environment

        folder = self.results / "bench"
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / f"{name}.csv", as_csv(rows))
        found = environment("", joined_processes("cpu" if self.device == "cpu" else "auto"))
        found |= {"threads": 1} if self.device == "cpu" else {}
        del found["data_fingerprint"]
        write_text(folder / f"{name}.json", json.dumps(found, indent=1) + "\n")


def as_csv(rows: Rows) -> str:
    """Return the rows with a header, numbers with four digits after the point."""
    text = io.StringIO()
    writer: Any = None
    for row in rows:
        values = {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in asdict(row).items()}
        if writer is None:
            writer = csv.DictWriter(text, [*values], lineterminator="\n")
            writer.writeheader()
        writer.writerow(values)
    return text.getvalue()


def as_table(rows: Sequence[BenchRow]) -> Table:
    """Return what is printed: medians, quartiles and goals."""
    table = Table("what", "network", "pixels", "images", "median", "quartiles", "goal", "met")
    for row in rows:
        quartiles, met = f"{row.lower:.3f} to {row.upper:.3f}", "yes" if row.met else "no"
        sizes = str(row.image_size), str(row.images)
        table.add_row(
            row.what, row.network, *sizes, f"{row.median:.3f}", quartiles, f"{row.goal:g}", met
        )
    return table


def as_search_table(rows: Sequence[SearchRow]) -> Table:
    """Return what is printed of the search."""
    table = Table("what", "experiment", "solver", "entries", "median", "quartiles", "goal", "met")
    for row in rows:
        quartiles = f"{row.lower:.3f} to {row.upper:.3f}"
        goal = ("", "") if row.goal is None else (f"{row.goal:g}", "yes" if row.met else "no")
        entries = "" if row.entries is None else str(row.entries)
        where = row.what, row.experiment, row.solver, entries
        table.add_row(*where, f"{row.median:.3f}", quartiles, *goal)
    return table


def measured(case: BenchCase, repetitions: int) -> list[BenchRow]:
    """Return the rows of one network, in the order of `GOALS`, by the processor's time."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        work = _Work(case)
        step = _in_turns(work.step, work.plain_step, repetitions, case.inner)
        memory = [_memory(case.held())] * 2
        refresh = _in_turns(work.refresh, work.plain_passes, repetitions, 1)
        switch = [1000 * _seconds(work.switches) / SWITCHES for _ in range(repetitions)]
    finally:
        torch.set_num_threads(threads)
    found = (step, memory, refresh, switch)
    cases = (case, case.held(), case, case)
    return [
        _row(what, of, values, goal)
        for (what, goal), of, values in zip(GOALS.items(), cases, found, strict=True)
    ]


def _memory(case: BenchCase) -> float:
    """Return the most that a sandwich step holds, as a multiple of the largest network's alone."""
    work = _Work(case)
    return _most_held(work.step) / _most_held(lambda: work.step(work.widths[:1]))


class _Work:
    """What is timed: the work of one slimmable network, and that of plain ones."""

    def __init__(self, case: BenchCase) -> None:
        import torch

        from pareco.models import create_model
        from pareco.slimmable import make_slimmable
        from pareco.training.step import sandwich_widths

        generator = torch.Generator().manual_seed(0)
        size = (case.channels, case.image_size, case.image_size)
        model = create_model(
            case.network, num_classes=10, in_chans=case.channels, base_width=case.base_width
        )
        self.net = net = make_slimmable(model.train(), torch.zeros(1, *size))
        self.images = torch.randn(case.images, *size, generator=generator)
        self.labels = torch.randint(0, 10, (case.images,), generator=generator)
        self.widths = sandwich_widths(net, [net.space.sample(generator) for _ in range(2)])
        self.visited = [net.space.sample(generator) for _ in range(case.refreshed)]
        self.extracted = [net.extract(each) for each in self.widths]
        self.others = [net.extract(each) for each in self.visited]

    def step(self, widths: Sequence[Any] = ()) -> None:
        """Do a sandwich step, of all widths unless some are given."""
        from pareco.training.step import accumulate_gradients

        chosen = widths or self.widths
        accumulate_gradients(self.net, self.images, self.labels, chosen, label_smoothing=0.1)
        self.net.zero_grad()

    def plain_step(self) -> None:
        """Do the same with the extracted networks."""
        import torch.nn.functional as F

        largest, *others = self.extracted
        scores = largest(self.images)
        F.cross_entropy(scores, self.labels, label_smoothing=0.1).backward()
        soft_labels = scores.detach().softmax(1)
        for each in others:
            F.cross_entropy(each(self.images), soft_labels).backward()
        for each in self.extracted:
            each.zero_grad()

    def refresh(self) -> None:
        """Measure the visited networks on the batch."""
        from pareco.evaluation import batch_losses

        batch_losses(self.net, (self.images, self.labels), self.visited)

    def plain_passes(self) -> None:
        """Measure them as plain networks, in training mode."""
        import torch
        import torch.nn.functional as F

        with torch.no_grad():
            for each in self.others:
                F.cross_entropy(each(self.images), self.labels)

    def switches(self) -> None:
        """Switch to other widths and back."""
        for _ in range(SWITCHES):
            with self.net.at(self.widths[-1]):
                pass


def _row(what: str, case: BenchCase, values: list[float], goal: float) -> BenchRow:
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return BenchRow(
        what=what,
        network=case.network,
        image_size=case.image_size,
        images=case.images,
        median=median,
        lower=lower,
        upper=upper,
        repetitions=len(values),
        goal=goal,
    )


def _in_turns(
    first: Callable[[], object], second: Callable[[], object], repetitions: int, inner: int
) -> list[float]:
    """Return the ratios of the first's time to the second's, after one untimed pass of both."""
    first()
    second()
    ratios = []
    for _ in range(repetitions):
        times = [sum(_seconds(each) for _ in range(inner)) for each in (first, second)]
        ratios.append(times[0] / times[1])
    return ratios


def _seconds(work: Callable[[], object]) -> float:
    """Return the processor time that it takes: what else the machine does matters less."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def _most_held(work: Callable[[], object]) -> int:
    """Return the most bytes of tensors held at once beyond those held before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    results: Any = profiler.profiler.kineto_results
    events = [each for each in results.events() if each.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
