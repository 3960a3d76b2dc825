"""Serve requests within a target latency while the load on the machine changes, and draw it.

python docs/examples/latency_target.py digits.pareco --images 64 --seconds 45 --output serving
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import pareco
from pareco.bundle import Bundle
from pareco.processes import joined_processes
from pareco.reporting.figures.style import SUFFIXES, styled, write_figure
from pareco.training.environment import hardware

LEVELS = 6
BUSY = [sys.executable, "-c", "while True: pass"]


class Pace:
    """Which budget to serve at: a smaller one after a miss, a larger one after a while of slack.

    A miss is that the median of the last 5 requests is above the target; slack, that the median of
    the last 40 is below 0.7 of it. What was measured at another budget does not count.
    """

    def __init__(self, budgets: Sequence[float], target_ms: float) -> None:
        self.budgets, self.target_ms = sorted(budgets), target_ms
        self.level = len(self.budgets) - 1
        self._last: deque[float] = deque(maxlen=40)

    def tell(self, milliseconds: float) -> None:
        """Take what a request took, and set the level of the next one."""
        self._last.append(milliseconds)
        last, step = [*self._last], 0
        if len(last) >= 5 and statistics.median(last[-5:]) > self.target_ms:
            step = -1
        elif len(last) == 40 and statistics.median(last) < 0.7 * self.target_ms:
            step = 1
        if 0 <= self.level + step < len(self.budgets) and step:
            self.level += step
            self._last.clear()


def served(
    bundle: Bundle, requests: Iterable[Tensor], pace: Pace
) -> Iterator[tuple[Tensor, float, float]]:
    """Yield the scores of each request, the MACs allowed for it, and the milliseconds it took."""
    level, network = -1, bundle.switch()
    for images in requests:
        begun = time.perf_counter()
        if level != pace.level:
            level = pace.level
            network = bundle.switch(macs=pace.budgets[level])
        with torch.inference_mode():
            scores = network(images)
        milliseconds = 1000 * (time.perf_counter() - begun)
        yield scores, pace.budgets[level], milliseconds
        pace.tell(milliseconds)


def tried(bundle: Bundle, images: Tensor, seconds: float, target: float) -> pd.DataFrame:
    """Return a row for each request, served in turns by the loop and by the best network alone.

    In the middle third of the time, as many processes as there are cores keep them busy. `target`
    is in medians of the best network before all that.
    """
    fixed = bundle.for_budget()

    def fixed_ms() -> float:
        begun = time.perf_counter()
        with torch.inference_mode():
            fixed(images)
        return 1000 * (time.perf_counter() - begun)

    target_ms = target * statistics.median(fixed_ms() for _ in range(50))
    front = bundle.front
    least, most = front.macs.min(), front.macs[bundle.choice()]
    pace = Pace([least + (most - least) * i / (LEVELS - 1) for i in range(LEVELS)], target_ms)
    rows, busy, begun = [], [], time.perf_counter()
    try:
        for _, budget, milliseconds in served(bundle, forever(images), pace):
            now = time.perf_counter() - begun
            chosen = bundle.choice(macs=budget)
            row = {"seconds": now, "loaded": bool(busy), "target_ms": target_ms}
            row |= {"macs": front.macs[chosen], "error": front.test_top1_error[chosen]}
            rows.append({**row, "paced_ms": milliseconds, "fixed_ms": fixed_ms()})
            if seconds / 3 <= now < 2 * seconds / 3 and not busy:
                busy = [subprocess.Popen(BUSY) for _ in range(os.cpu_count() or 1)]
            if now >= 2 * seconds / 3 and busy:
                busy = stopped(busy)
            if now >= seconds:
                return pd.DataFrame(rows)
    finally:
        stopped(busy)
    raise AssertionError("requests never end")


def forever(images: Tensor) -> Iterator[Tensor]:
    """Yield the same request again and again."""
    while True:
        yield images


def stopped(processes: Sequence[subprocess.Popen[bytes]]) -> list[subprocess.Popen[bytes]]:
    """End the processes; return none."""
    for each in processes:
        each.kill()
        each.wait()
    return []


def summary(rows: pd.DataFrame, bundle: Bundle) -> pd.DataFrame:
    """Return the share of requests over the target and the mean test error, in percent."""
    front, found = bundle.front, {}
    for loaded, part in rows.groupby("loaded"):
        errors = {"paced": part.error.mean(), "fixed": front.test_top1_error[bundle.choice()]}
        for way, error in errors.items():
            late = 100 * (part[f"{way}_ms"] > part.target_ms).mean()
            median = part[f"{way}_ms"].median()
            when = "other work" if loaded else "alone"
            found[when, way] = {"late": late, "median_ms": median, "test_top1_error": error}
    return pd.DataFrame(found).T.round(2)


def drawn(rows: pd.DataFrame) -> Figure:
    """Return the latency of each request, and the MACs that were chosen, over time."""
    with styled():
        figure = Figure(figsize=(7, 4.2))
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        looks = {"fixed": ("best network, always", "#de8f05"), "paced": ("loop", "#0173b2")}
        for way, (label, colour) in looks.items():
            dots = {"s": 5, "color": colour, "linewidths": 0, "rasterized": True}
            above.scatter(rows.seconds, rows[f"{way}_ms"], label=label, **dots)
        above.axhline(rows.target_ms[0], color="0.2", linestyle="--", label="target")
        below.step(rows.seconds, rows.macs / 1e6, where="post", color=looks["paced"][1])
        for axes in (above, below):
            busy = rows.seconds[rows.loaded]
            axes.axvspan(busy.min(), busy.max(), color="0.92", zorder=0, label="other work")
        above.set(ylabel="latency (ms)", ylim=(0, 1.1 * rows.fixed_ms.quantile(0.98)))
        below.set(ylabel="million MACs\nof an image", xlabel="seconds", ylim=(0, None))
        figure.legend(*above.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve, print the shares of late requests, and write what was measured and its figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=64, help="in a request")
    parser.add_argument("--seconds", type=float, default=45.0)
    parser.add_argument("--target", type=float, default=1.5, help="in medians of the best network")
    parser.add_argument("--output", type=Path, default=Path("serving"), help="without an ending")
    chosen = parser.parse_args(arguments)
    bundle, threads = pareco.load(chosen.bundle), torch.get_num_threads()
    image = bundle.prepared([Image.new("RGB", (32, 32))])
    torch.set_num_threads(1)
    try:
        rows = tried(bundle, image.repeat(chosen.images, 1, 1, 1), chosen.seconds, chosen.target)
    finally:
        torch.set_num_threads(threads)
    found = summary(rows, bundle)
    print(found)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    rows.round({"seconds": 3, "target_ms": 3, "paced_ms": 3, "fixed_ms": 3}).to_csv(
        chosen.output.with_suffix(".csv"), index=False
    )
    told = {**hardware(joined_processes("cpu").device), "torch": torch.__version__, "threads": 1}
    told |= {"images": chosen.images, "seconds": chosen.seconds, "target": chosen.target}
    known = ("experiment", "method", "seed", "commit")
    told |= {"bundle": {name: bundle.origin.get(name) for name in known}}
    chosen.output.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")
    for suffix in SUFFIXES:
        write_figure(drawn(rows), chosen.output.with_suffix(suffix))
    return 0


if __name__ == "__main__":
    sys.exit(main())
