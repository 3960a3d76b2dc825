"""The application `pareco`: a network as a slimmable one, a run as a bundle, and its networks."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.table import Table

from pareco.arguments import Flag, chosen_command, in_one_line, plain_console
from pareco.config import ExportKind
from pareco.latency_command import LatencyCommand, failed

if TYPE_CHECKING:
    from pareco.bundle.serving import BudgetLimits
    from pareco.slimmable import SlimmableNet

_COSTS = {
    "macs": "MACs",
    "params": "parameters",
    "activations": "activations, sum",
    "peak_activations": "activations, peak",
}


@dataclass(frozen=True, kw_only=True)
class ProfileCommand:
    """Show the channel groups of a network and its costs at the full and the smallest width.

    Exit status: 0; 1 if the network cannot be made slimmable; 2 for an unknown network or a wrong
    value.
    """

    network: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NETWORK")]
    """cifar_resnet<depth>, cifar_vgg<depth> or a network of timm, such as mobilenetv2_100."""

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

    slim_head: Flag = False
    """Slim a pointwise convolution or linear layer that feeds only the classifier, too."""

    whole: tuple[str, ...] = ()
    """Paths of modules that run as they are, with all their channels, such as attention; or auto:
    of those that have no rule."""

    json: Flag = False
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

    def carried_out(self) -> int:
        """Print the profile; return the exit status."""
        import torch

        from pareco.models import create_model
        from pareco.slimmable import TracingError, make_slimmable

        model = create_model(self.network, num_classes=self.num_classes)
        made_for = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 32, 32))
        size = self.image_size or made_for[-1]
        try:
            net = make_slimmable(
                model.to("meta"),  # no memory for weights
                torch.zeros(1, 3, size, size, device="meta"),
                alpha_min=self.alpha_min,
                divisor=self.divisor,
                slim_head=self.slim_head,
                whole=self.whole,
            )
        except TracingError as error:
            return failed(error)
        record = self._record(net, size)
        if self.json:
            print(json.dumps(record, indent=2))
        else:
            plain_console().print(*_tables(record))
        return 0

    def _record(self, net: SlimmableNet, size: int) -> dict[str, Any]:
        shown = {"full": 1.0, "smallest": self.alpha_min, "width": self.width}
        groups, networks = net.space.groups, {}
        for name, multiplier in shown.items():
            if multiplier is not None:
                widths = net.space.uniform(multiplier)
                costs = {cost: int(getattr(net.cost, cost)(widths)) for cost in _COSTS}
                networks[name] = {"multiplier": multiplier, "widths": widths, **costs}
        return {
            "network": self.network,
            "image_size": size,
            "num_classes": self.num_classes,
            "divisor": self.divisor,
            "groups": [
                {"name": g.name, "stage": g.stage, "channels": g.maximum, "step": g.step}
                for g in groups
            ],
            "batch_norm": bool(net.norms()),
            "whole": list(net.whole),
            "networks": networks,
        }


def _tables(record: dict[str, Any]) -> tuple[Table, Table]:
    """Return what the record of a profile holds as a table of channels and one of costs."""
    title = "{network}, {image_size} x {image_size}".format_map(record)
    groups = Table("channel group", title=f"{title}: {len(record['groups'])} channel groups")
    caption = "per image; activations in MiB of 32-bit floats"
    if not record["batch_norm"]:
        caption += "; no batch norm, so nothing to re-calibrate"
    if record["whole"]:
        caption += f"; run whole: {', '.join(record['whole'])}"
    costs = Table("cost", title=f"{title}: costs", caption=caption)
    groups.add_column("stage", justify="right")
    for name, network in record["networks"].items():
        for table in (groups, costs):
            table.add_column(f"{name} ({network['multiplier']:g})", justify="right")
    networks = list(record["networks"].values())
    counts = zip(*(network["widths"] for network in networks), strict=True)
    for group, row in zip(record["groups"], counts, strict=True):
        groups.add_row(group["name"], str(group["stage"]), *map(str, row))
    for cost, label in _COSTS.items():
        values = [network[cost] for network in networks]
        costs.add_row(label, *(_cell(cost, value, values[0]) for value in values))
    return groups, costs


def _cell(cost: str, value: int, full: int) -> str:
    if cost.endswith("activations"):
        amount = f"{4 * value / 2**20:,.2f} MiB"
    else:
        amount = f"{value / 1e6:,.2f} M"
    return f"{amount} {value / full:>4.0%}"


@dataclass(frozen=True, kw_only=True)
class BundleCommand:
    """Write the front of a finished run as one file, to be loaded with pareco.load.

    Exit status: 0; 1 for a run that has not finished or kept too little; 2 for a wrong value.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder, such as runs/digits/pareco/seed0."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")]
    """The file to write, such as digits.pareco."""

    images: str | None = None
    """Where the run's images lie, if not in their own place: for a run of an earlier version, whose
    batch-norm statistics are measured again."""

    def carried_out(self) -> int:
        """Write the file and say what is in it; return the exit status."""
        from pareco.bundle.from_run import write_bundle
        from pareco.bundle.sealed import BundleError
        from pareco.config import Machine
        from pareco.reporting.reading import InvalidRecord

        try:
            front = write_bundle(self.run, self.output, Machine(images=self.images)).front
        except (BundleError, InvalidRecord, OSError) as error:
            return failed(error)
        least, most = int(front["macs"].min()), int(front["macs"].max())
        size = self.output.stat().st_size
        print(f"{self.output}: {len(front)} networks, {least:,} to {most:,} MACs; {size:,} bytes")
        return 0


@dataclass(frozen=True, kw_only=True)
class _FromBundle:
    """A bundle, and what a network of it may cost at most."""

    bundle: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BUNDLE")]
    """A file that `pareco bundle` or `save_bundle` wrote."""

    builder: str | None = None
    """FILE.py:FUNCTION or MODULE:FUNCTION, which makes the network, for a bundle of a network of
    your own. It is run."""

    macs: float | None = None
    """Most multiply-accumulates for an image."""

    params: float | None = None
    """Most parameters."""

    memory_bytes: float | None = None
    """Most bytes of activations at once, in 32-bit floats."""

    latency_ms: float | None = None
    """Most milliseconds for an image, on the machine that latency was measured on."""

    def _limits(self) -> BudgetLimits:
        return {
            "macs": self.macs,
            "params": self.params,
            "memory_bytes": self.memory_bytes,
            "latency_ms": self.latency_ms,
        }


@dataclass(frozen=True, kw_only=True)
class PredictCommand(_FromBundle):
    """Print file, class and probability of images, by the best network within a budget.

    The best is that of the least search loss; without a limit, of all. Files that cannot be read
    are named on stderr, the others printed. Exit status: 0; 1 if the bundle or an image cannot be
    read; 2 for a budget that no network is within, or a wrong value.
    """

    images: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="IMAGE", help_behavior_hint="(required)"),
    ]
    """Images, and folders of images."""

    top: int = 1
    """How many classes to print for each image, the likeliest first."""

    def __post_init__(self) -> None:
        """Check the values that nothing else checks."""
        if not self.images:
            raise ValueError("IMAGE: name at least one image, or a folder")
        if self.top < 1:
            raise ValueError(f"--top must be at least 1, got {self.top}")

    def carried_out(self) -> int:
        """Print a line for each class, with tabs between; return the exit status."""
        from pareco.bundle import load
        from pareco.bundle.sealed import BundleError

        bad: list[int] = []
        try:
            bundle = load(self.bundle, builder=self.builder)
            found = bundle.predict(
                self.images,
                unreadable=lambda error: bad.append(failed(error)),
                **self._limits(),
            )
        except (BundleError, OSError) as error:
            return failed(error)
        for name, row in found.iterrows():
            for place in (-row.to_numpy()).argsort(kind="stable")[: self.top]:
                print(name, found.columns[place], f"{row.iloc[place]:.4f}", sep="\t")
        return max(bad, default=0)


@dataclass(frozen=True, kw_only=True)
class ExportCommand(_FromBundle):
    """Write the best network within a budget as a file that others read, once it is checked.

    The best is that of the least search loss. The file is read again and run beside the network:
    nothing is written unless it gives the same scores. Exit status: 0; 1 if the network cannot be
    exported, or bundle or images cannot be read; 2 for a budget that no network is within, or a
    wrong value.
    """

    to: ExportKind
    """onnx (its files end in .onnx), torch (a program of torch.export, .pt2), or safetensors (plain
    weights, also for timm: docs/export.md has the loader)."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="OUT")]
    """The file to write or, with --all, the folder to make."""

    all: Flag = False
    """Write every network within the budget (of the whole front without one), and index.csv."""

    images: Path | None = None
    """An image, or a folder of images, to check with; without, noise of the network's size."""

    def carried_out(self) -> int:
        """Write, and print a line for each file; return the exit status."""
        from pareco.bundle import BundleError, ExportError, load
        from pareco.bundle.serving import UnreadableImage

        try:
            bundle = load(self.bundle, builder=self.builder)
            export = bundle.export_front if self.all else bundle.export
            found = export(self.output, self.to, images=self.images, **self._limits())
        except (BundleError, ExportError, UnreadableImage, OSError) as error:
            return failed(error)
        for row in found.to_dict("records"):
            place = self.output / row["file"] if self.all else self.output
            off = f"scores off by at most {row['largest_difference']:.1e} of the largest"
            print(f"{place}: {row['macs']:,} MACs, {row['params']:,} parameters; {off}")
        return 0


@dataclass(frozen=True, kw_only=True)
class SurveyCommand:
    """Say which networks of timm can be made slimmable, and why others cannot, as Markdown.

    Each is tried in a process of its own. Exit status: 0; 1 if a check finds a fault; 2 for an
    unknown network or a wrong value.
    """

    networks: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NETWORK")]
    """Names of timm; by default one of each architecture. Those with less than two convolutions
    whose windows overlap are left out."""

    check: Flag = False
    """Run each against its extracted sub-networks, in double precision, which takes half an hour
    for all."""

    limit_s: float = 120
    """Seconds that a network may take to be made slimmable, and to be checked."""

    json: Flag = False
    """Print a line of JSON for each network as it is found."""

    found: Path | None = None
    """A file of such lines, of an earlier survey: its networks are not tried again."""

    def __post_init__(self) -> None:
        """Check the values that nothing else checks."""
        if not 0 < self.limit_s < math.inf:
            raise ValueError(f"--limit-s must be more than 0 and finite, got {self.limit_s}")

    def carried_out(self) -> int:
        """Print what is found; return the exit status."""
        import timm
        import torch

        from pareco.survey import architectures, document, read, survey

        if unknown := [name for name in self.networks if not timm.is_model(name)]:
            raise ValueError(f"NETWORK: timm has no {unknown[0]!r}")
        try:
            found = {} if self.found is None else read(self.found)
        except OSError as error:
            return failed(error)
        names = [name for name in self.networks or architectures() if name not in found]
        for each in survey(names, limit_s=self.limit_s, check=self.check):
            found[each.network] = each
            if self.json:
                print(json.dumps(asdict(each)), flush=True)
        rows = [found[name] for name in timm.list_models() if name in found]
        if not self.json:
            print(document(rows, f"timm {timm.__version__}, torch {torch.__version__}"), end="")
        return 1 if any(each.fault for each in rows) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (by default the process's own) and return its exit status."""
    commands = {
        "profile": ProfileCommand(network=tyro.MISSING),
        "latency": LatencyCommand(network=tyro.MISSING),
        "bundle": BundleCommand(run=tyro.MISSING, output=tyro.MISSING),
        "survey": SurveyCommand(networks=()),
        "predict": PredictCommand(bundle=tyro.MISSING, images=tyro.MISSING),
        "export": ExportCommand(bundle=tyro.MISSING, to=tyro.MISSING, output=tyro.MISSING),
    }
    try:
        with in_one_line():
            about = "Slimmable networks with optimized widths."
            request = chosen_command(commands, arguments, prog="pareco", description=about)
        return request.carried_out()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
