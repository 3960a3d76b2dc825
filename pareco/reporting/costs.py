"""The words for each cost of a network, in one table."""

from collections.abc import Mapping
from dataclasses import dataclass

from pareco.cost import COSTS


@dataclass(frozen=True, kw_only=True)
class CostWords:
    """What tables and figures call a cost."""

    name: str
    """What follows a number, such as `301 M MACs`."""

    figure: str
    """The file name, without suffix, of the plot of errors over this cost."""

    definition: str = ""
    """What is counted, where the name does not say it."""

    unit: str = ""
    """The unit of a cost that is no count."""

    @property
    def defined(self) -> str:
        """The name, with the definition in brackets if there is one."""
        return f"{self.name} ({self.definition})" if self.definition else self.name

    @property
    def axis(self) -> str:
        """What stands at an axis, before `(% of ...)`."""
        label = f"{self.name}: {self.definition}" if self.definition else self.name
        return label[0].upper() + label[1:]

    def amount(self, value: float) -> str:
        """A value in three digits, such as `301 M`, or with the unit, such as `3.21 ms`."""
        return f"{value:.3g} {self.unit}" if self.unit else amount(value)

    def full(self, value: float) -> str:
        """A value with the name, such as `301 M MACs`."""
        return f"{self.amount(value)} {self.name}"


LATENCY = "latency_ms"
AXES: tuple[str, ...] = (*COSTS, LATENCY)

COST_WORDS: Mapping[str, CostWords] = {
    "macs": CostWords(name="MACs", figure="error_vs_flops"),
    "params": CostWords(name="parameters", figure="error_vs_params"),
    "activations": CostWords(
        name="activations",
        figure="error_vs_activations",
        definition="elements put out by layers",
    ),
    "peak_activations": CostWords(
        name="peak activations",
        figure="error_vs_peak_activations",
        definition="elements held at once",
    ),
    LATENCY: CostWords(
        name="latency",
        figure="error_vs_latency",
        definition="measured, of one image",
        unit="ms",
    ),
}


def amount(count: float) -> str:
    """A count in three digits with k, M or G, such as `301 M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * size:  # which rounds up to it
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"
