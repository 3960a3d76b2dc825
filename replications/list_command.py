"""The command `list`: the experiments and the scales."""

from __future__ import annotations

from rich.console import Console

from replications.catalogue import experiment_named, experiment_names, scales_of


def list_experiments(name: str | None, arguments: list[str], console: Console) -> int:
    """Show every experiment in a line, and the scales; return 0."""
    if name is not None or arguments:
        raise ValueError("list takes no arguments")
    scales: dict[str, None] = {}
    for each in experiment_names():
        experiment = experiment_named(each)
        scales |= dict.fromkeys(scales_of(each))
        count = len(experiment.seeds)
        seeds = f"{count} seed{'' if count == 1 else 's'}"
        summary = f"{experiment.network.name} on {experiment.data.name}, {seeds}"
        console.print(f"{each:<24} {summary}: {', '.join(experiment.methods)}", highlight=False)
    console.print(f"\nscales (--scale): {', '.join(scales)}", highlight=False)
    return 0
