"""Error over cost of several experiments, side by side, as papers show them."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from types import MappingProxyType

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pareco.reporting.figures.error_vs_cost import draw_line, joined_errors
from pareco.reporting.figures.style import MethodLook, add_legend, looks_in_order, styled
from pareco.reporting.records import Records
from pareco.reporting.statistics import FEWEST_SEEDS, method_order

_PANELS_IN_A_ROW = 4
_COLUMNS_PER_INCH = 16
_COLUMNS_OF_A_PANEL = 40


def side_by_side_figure(
    found: Sequence[Records],
    absent: Sequence[str],
    scale: str,
    focus: str,
    departures: Mapping[str, str] = MappingProxyType({}),
) -> Figure:
    """Test top-1 error (%) over each experiment's own cost (% of the full network's).

    A panel for each of the records, with the line of every method as in `error_figure`: the mean
    over seeds, with a band from three seeds on. A method looks the same in all of them, `focus`
    first. `absent` names what has not run, at a `scale` that the title tells; `departures` say of
    experiments, by name, what was another way than that scale has it.
    """
    methods = method_order((m for each in found for m in each.fronts["method"].unique()), focus)
    looks = looks_in_order({name: name for name in methods}, dict.fromkeys(methods, 1))
    columns = min(len(found), _PANELS_IN_A_ROW)
    lines = -(-len(found) // columns)
    with styled():
        figure = Figure(figsize=(1.0 + 2.6 * columns, 1.6 + 2.3 * lines))
        panels = list(figure.subplots(lines, columns, squeeze=False, sharex=True).flat)
        for axes in panels[len(found) :]:
            axes.remove()
        for axes, records in zip(panels, found, strict=False):
            _draw_panel(axes, records, looks, departures.get(records.experiment.experiment, ""))
        for axes in panels[len(found) - columns : len(found)]:  # the lowest of each column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("Cost (% of the full network's)")
        for look in looks.values():
            panels[0].plot([], [], **look.line, label=look.label)
        figure.supylabel("Test top-1 error (%)", fontsize="medium")
        text = f"scale: {scale}; mean over seeds, with 95% t intervals from {FEWEST_SEEDS} seeds on"
        text += f"; not run: {', '.join(absent)}" if absent else ""
        title = fill(text, int(_COLUMNS_PER_INCH * figure.get_figwidth()))
        figure.suptitle(title, x=0.01, ha="left")
        add_legend(figure, panels[:1], loc="outside lower left", ncols=min(len(looks), columns + 1))
    return figure


def _draw_panel(axes: Axes, records: Records, looks: dict[str, MethodLook], departure: str) -> None:
    experiment = records.experiment
    percent = 100 * records.fronts[experiment.cost] / experiment.full_cost
    fronts: pd.DataFrame = records.fronts.assign(percent=percent)
    for method, own in fronts.groupby("method"):
        draw_line(axes, joined_errors(own, "percent"), looks[str(method)])
    seeds = fronts.groupby("method")["seed"].nunique()
    least, most = int(seeds.min()), int(seeds.max())
    count = f"{most} seed{'' if most == 1 else 's'}" if least == most else f"{least}-{most} seeds"
    equal = ", equal compute" if experiment.equal_macs else ""
    amount = experiment.words.amount(experiment.full_cost)
    axes.set_title(
        f"{experiment.network}, {experiment.data}\n{experiment.image_size} px, {amount}"
        f" {experiment.words.name}, {count}{equal}"
        + (f"\n{fill(departure, _COLUMNS_OF_A_PANEL)}" if departure else ""),
        fontsize="small",
    )
