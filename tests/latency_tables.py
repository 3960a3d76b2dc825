"""Latency tables whose times are made up, so that no clock is looked at."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pareco.latency_table import FORMAT, LatencyTable, OperatorTimes
from pareco.slimmable import SlimmableNet


def made_up_table(
    net: SlimmableNet,
    microseconds: Callable[[int], float] = lambda count: 10.0 * -(-count // 4),
    **other: Any,
) -> LatencyTable:
    """Return a table of the network, with one operator of each group and one of no group.

    The first take so many microseconds at each count, all counts being levels; the last takes 5.
    """
    space, size = net.space, 8
    levels = tuple(
        tuple(range(low, high + 1)) for low, high in zip(space.smallest, space.maxima, strict=True)
    )
    own = tuple(
        OperatorTimes(
            name=name,
            operation="Conv2d",
            groups=(group,),
            cuts=(None,),
            microseconds=[microseconds(count) for count in levels[group]],
        )
        for group, name in enumerate(space.names)
    )
    last = OperatorTimes(name="pool", operation="Pool", groups=(), cuts=(), microseconds=5.0)
    fields: dict[str, Any] = {
        "format": FORMAT,
        "network": "cifar_resnet8",
        "image_size": size,
        "channels": 1,
        "batch_size": 1,
        "cpu_threads": 1,
        "torch": "2.0.0",
        "machine": {"cpu": "made up", "device": "cpu", "gpus": []},
        "full_costs": dict(net.cost.full_costs),
        "alpha_min": space.alpha_min,
        "divisor": space.divisor,
        "names": space.names,
        "maxima": space.maxima,
        "levels": levels,
        "scale": 2.0,
        "operators": (*own, last),
    }
    return LatencyTable(**(fields | other))


def written_table(table: LatencyTable, folder: Path) -> Path:
    """Return the file of a table in a folder."""
    path = folder / "table.json"
    path.write_text(table.to_json())
    return path
