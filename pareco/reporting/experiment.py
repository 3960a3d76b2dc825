"""What all runs of an experiment share, and how tables and figures name it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from pareco.cost import COSTS, Cost
from pareco.reporting.costs import COST_WORDS, CostWords

PUBLISHED_SCALE = "paper"


@dataclass(frozen=True, kw_only=True)
class Group:
    """A channel group: its name and its channel count in the full network."""

    name: str
    maximum: int


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What the runs of an experiment share."""

    experiment: str
    network: str
    data: str
    """The name of the data set."""
    image_size: int
    """Height and width in pixels."""
    scale: str
    """PUBLISHED_SCALE for the published schedule, else a line that says how much of it this is."""
    cost: Cost
    """The objective beside the loss: the axis of tables and plots."""
    full_costs: Mapping[str, float]
    """Every cost of the full network: COSTS, and the latency where it was measured."""
    groups: tuple[Group, ...]
    """In the order of a front's `widths`."""
    budget_exempt: tuple[str, ...] = ()
    """Methods that may spend another training budget than the rest, in alphabetical order."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The experiment of a result.json or network.json.

        Raises KeyError where a field is missing, and ValueError for a cost that COSTS lacks or a
        scale that is not one line of text.
        """
        exempt = record["budget_exempt"]
        if isinstance(exempt, bool):
            exempt = [record["method"]] if exempt else []
        return cls(
            experiment=_line("experiment", record["experiment"]),
            network=_line("network", record["network"]),
            data=_line("data", record["data"]),
            image_size=int(record["image_size"]),
            scale=_line("scale", record["scale"]),
            cost=_cost(record["cost"]),
            full_costs={name: int(record["full_costs"][name]) for name in COSTS},
            groups=tuple(
                Group(name=_line("a group", group["name"]), maximum=int(group["maximum"]))
                for group in record["groups"]
            ),
            budget_exempt=tuple(sorted(exempt)),
        )

    def to_json(self) -> str:
        """The text of network.json, from which `read_experiment` makes it again; no latency."""
        record = asdict(self)
        record["full_costs"] = {name: self.full_costs[name] for name in COSTS}
        return json.dumps(record, indent=2, ensure_ascii=False) + "\n"

    @property
    def full_cost(self) -> float:
        """What the full network costs, by the experiment's own cost."""
        return self.full_costs[self.cost]

    @property
    def words(self) -> CostWords:
        """What the experiment's own cost is called."""
        return COST_WORDS[self.cost]

    @property
    def title(self) -> str:
        """Experiment, network, data set and image size, in one line."""
        return (
            f"{self.experiment}: {self.network} on {self.data}, "
            f"{self.image_size} x {self.image_size} pixels"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What every table and figure must say: a scale that is not the published one."""
        if self.scale == PUBLISHED_SCALE:
            return ()
        return (f"scale: {self.scale}, not the published schedule",)


def _line(field: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError(f"{field} {value!r} is not one line of text")
    return value


def _cost(value: Any) -> Cost:
    for name in COSTS:
        if value == name:
            return name
    raise ValueError(f"cost {value!r} is none of {', '.join(COSTS)}")
