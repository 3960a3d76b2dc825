"""The command `pareco`: what a network would be as a slimmable one."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pareco.models import create_model
from pareco.slimmable import SlimmableNet, TracingError, make_slimmable
from pareco.widths import Widths

COSTS = {
    "macs": "MACs",
    "params": "parameters",
    "activations": "activations, sum",
    "peak_activations": "activations, peak",
}
_CAPTION = "per image; activations in MiB of 32-bit floats"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Show the channel groups of a network and its costs at the full and the smallest width.

    Exit status: 0; 1 if the network cannot be made slimmable; 2 for an unknown network or a wrong
    value.
    """

    network: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NETWORK")]
    """cifar_resnet<depth> or any network of timm, such as mobilenetv2_100."""

    image_size: int | None = None
    """Height and width of the images in pixels; by default what the network is made for."""

    num_classes: int = 1000
    """Number of classes."""

    width: float | None = None
    """Show the network at this width multiplier too; in [alpha-min, 1]."""

    alpha_min: float = 0.42
    """Width multiplier of the smallest network."""

    divisor: int = 1
    """Round channels to multiples of this number; 1 rounds down to whole channels."""

    slim_head: bool = False
    """Slim the last convolution before the classifier too."""

    json: bool = False
    """Print JSON (activations in elements) in place of tables."""

    def __post_init__(self) -> None:
        """Check the values that nothing else checks."""
        for name, value in (("image-size", self.image_size), ("num-classes", self.num_classes)):
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        if self.width is not None and not self.alpha_min <= self.width <= 1:
            raise ValueError(
                f"--width must be in [{self.alpha_min}, 1] (--alpha-min to 1), got {self.width}"
            )

    def slimmable(self) -> tuple[SlimmableNet, int]:
        """Return the slimmable network, without memory for its weights, and its image size."""
        model = create_model(self.network, num_classes=self.num_classes)
        made_for = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 32, 32))
        size = self.image_size or made_for[-1]
        net = make_slimmable(
            model.to("meta"),
            torch.zeros(1, 3, size, size, device="meta"),
            alpha_min=self.alpha_min,
            divisor=self.divisor,
            slim_head=self.slim_head,
        )
        return net, size

    def multipliers(self) -> dict[str, float]:
        """Return the width multipliers to show, by name."""
        shown = {"full": 1.0, "smallest": self.alpha_min}
        return shown if self.width is None else shown | {"width": self.width}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (by default the process's own) and return its exit status."""
    errors = Console(stderr=True, highlight=False)
    try:
        profile = tyro.extras.subcommand_cli_from_dict(
            {"profile": Profile},
            prog="pareco",
            description=__doc__,
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        net, size = profile.slimmable()
    except ValueError as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}")
        return 1 if isinstance(error, TracingError) else 2
    columns = {name: net.space.uniform(value) for name, value in profile.multipliers().items()}
    if profile.json:
        json.dump(_record(profile, net, size, columns), sys.stdout, indent=2)
        print()
    else:
        _print(profile, net, size, columns)
    return 0


def _costs(net: SlimmableNet, widths: Widths) -> dict[str, int]:
    return {name: int(getattr(net.cost, name)(widths)) for name in COSTS}


def _record(
    profile: Profile, net: SlimmableNet, size: int, columns: dict[str, Widths]
) -> dict[str, object]:
    return {
        "network": profile.network,
        "image_size": size,
        "num_classes": profile.num_classes,
        "divisor": profile.divisor,
        "groups": [
            {"name": group.name, "stage": group.stage, "channels": group.maximum}
            for group in net.space.groups
        ],
        "networks": {
            name: {"multiplier": multiplier, "widths": columns[name], **_costs(net, columns[name])}
            for name, multiplier in profile.multipliers().items()
        },
    }


def _print(profile: Profile, net: SlimmableNet, size: int, columns: dict[str, Widths]) -> None:
    title = f"{profile.network}, {size} x {size}"
    headings = [f"{name} ({value:g})" for name, value in profile.multipliers().items()]
    groups = Table("channel group", title=f"{title}: {len(net.space.groups)} channel groups")
    groups.add_column("stage", justify="right")
    costs = Table("cost", title=f"{title}: costs", caption=_CAPTION)
    for heading in headings:
        groups.add_column(heading, justify="right")
        costs.add_column(heading, justify="right")
    for group, *counts in zip(net.space.groups, *columns.values(), strict=True):
        groups.add_row(group.name, str(group.stage), *map(str, counts))
    at = [_costs(net, widths) for widths in columns.values()]
    for name, label in COSTS.items():
        values = [each[name] for each in at]
        costs.add_row(label, *(_cell(name, value, values[0]) for value in values))
    Console().print(groups, costs)


def _cell(cost: str, value: int, full: int) -> str:
    if cost.endswith("activations"):
        amount = f"{4 * value / 2**20:,.2f} MiB"
    else:
        amount = f"{value / 1e6:,.2f} M"
    return f"{amount} {value / full:>4.0%}"


if __name__ == "__main__":
    sys.exit(main())
