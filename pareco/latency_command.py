"""The command `pareco latency`: a network's latency table, and what it foretells."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.table import Table

from pareco.arguments import Flag, plain_console
from pareco.files import write_text

if TYPE_CHECKING:
    from torch import Tensor

    from pareco.latency_table import LatencyTable
    from pareco.slimmable import SlimmableNet

_SHOWN = 5  # uniform networks
_FIT = 8  # channel counts on a line


@dataclass(frozen=True, kw_only=True)
class LatencyCommand:
    """Measure the operators of a network on this machine, and foretell its latency at any widths.

    The times of all operators over their channel counts are saved as a table, with what they depend
    on; the latency of a sub-network is their sum. Use an idle machine. Exit status: 0; 1 for a
    network that cannot be made slimmable, or a file that cannot be read or written; 2 for a wrong
    value.
    """

    network: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NETWORK|BUNDLE")]
    """cifar_resnet<depth>, cifar_vgg<depth>, a network of timm, or a file that `pareco bundle`
    wrote."""

    builder: str | None = None
    """FILE.py:FUNCTION or MODULE:FUNCTION, which makes the network, for a bundle of a network of
    your own. It is run."""

    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = None
    """The file of the table; by default NETWORK-SIZE-latency.json here."""

    table: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Measure no operator: take this table, for as many threads and images as it was made for."""

    image_size: int | None = None
    """Height and width of the images in pixels; by default what the network is made for."""

    threads: int = 1
    """CPU threads."""

    batch: int = 1
    """Images at a time; latencies are of all of them."""

    device: Literal["auto", "cpu"] = "auto"
    """auto: an accelerator where there is one."""

    check: int = 0
    """Measure so many networks of random widths too, and compare."""

    num_classes: int = 1000
    """Number of classes."""

    channels: int = 3
    """Colour channels of the images."""

    base_width: int | None = None
    """Channels of the first stage of a cifar_resnet, a cifar_vgg or a ConvNeXt of timm."""

    undone_strides: int = 0
    """How many of the first reductions of the resolution are undone."""

    alpha_min: float | None = None
    """Width multiplier of the smallest network; by default 0.42 or, of a bundle, what it has."""

    divisor: int = 1
    """Round channels to multiples of this number; 1 rounds down to whole channels."""

    slim_head: Flag = False
    """Slim a pointwise convolution or linear layer that feeds only the classifier, too."""

    whole: tuple[str, ...] = ()
    """Paths of modules that run as they are, with all their channels, such as attention; or auto:
    of those that have no rule."""

    json: Flag = False
    """Print JSON in place of tables."""

    def __post_init__(self) -> None:
        """Check the values that nothing else checks."""
        for name in ("image_size", "threads", "batch", "num_classes", "channels", "base_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        for name in ("check", "undone_strides"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} must not be negative")
        if self.table is not None and self.output is not None:
            raise ValueError("--table and --output: a table that is given is not written again")
        if self.output is not None and not self.output.absolute().parent.is_dir():
            raise ValueError(f"--output {self.output}: its folder is not there")
        if self.builder is not None and not Path(self.network).is_file():
            raise ValueError("--builder: only of a bundle of a network of your own")

    def carried_out(self) -> int:
        """Measure, write the table and print what it foretells; return the exit status."""
        from pareco.bundle.sealed import BundleError
        from pareco.slimmable import TracingError

        try:
            record = self._record()
        except (BundleError, TracingError, OSError) as error:
            return failed(error)
        if self.json:
            print(json.dumps(record, indent=2))
        else:
            plain_console().print(*_tables(record))
        return 0

    def _record(self) -> dict[str, Any]:
        """Return what was measured and foretold, ready for JSON."""
        import torch

        from pareco.latency_table import check_table, read_latency_table
        from pareco.processes import joined_processes

        given = None if self.table is None else read_latency_table(self.table)
        net, shape = self._bundled() if Path(self.network).is_file() else self._named()
        if given is not None:
            check_table(given, net.space, net.cost.full_costs, shape[-1])
        device = joined_processes(self.device).device
        batch = self.batch if given is None else given.batch_size
        noise = torch.Generator().manual_seed(0)
        images = torch.randn(batch, *shape, generator=noise).to(device)
        net.to(device)
        table = self._measured(net, images) if given is None else given
        place = self.table or self.output or self._place(shape[-1])
        if given is None:
            write_text(place, table.to_json())
        return {"table": str(place), **_description(table), **self._foretold(table, net, images)}

    def _foretold(self, table: LatencyTable, net: SlimmableNet, images: Tensor) -> dict[str, Any]:
        """Return what the table says of uniform and of random networks, beside what they take."""
        import torch

        from pareco.operator_times import agreement

        uniform = list(net.space.spread(_SHOWN))
        generator = torch.Generator().manual_seed(0)
        drawn = [net.space.sample(generator) for _ in range(self.check)]
        found = agreement(table, net, uniform, images)
        record: dict[str, Any] = {
            "networks": [
                {"widths": str(widths), "predicted_ms": predicted, "measured_ms": measured}
                for widths, predicted, measured in zip(
                    uniform, found.predicted, found.measured, strict=True
                )
            ]
        }
        if drawn:
            checked = agreement(table, net, drawn, images)
            record["check"] = {
                "networks": len(drawn),
                "median_error": checked.error,
                "rank_correlation": None if math.isnan(checked.rank) else checked.rank,
                "predicted_ms": list(checked.predicted),
                "measured_ms": list(checked.measured),
            }
        return record

    def _measured(self, net: SlimmableNet, images: Tensor) -> LatencyTable:
        """Return a new table, with a bar on the terminal meanwhile."""
        from rich.progress import Progress

        from pareco.operator_times import measured_table

        with Progress(console=plain_console(stderr=True), transient=True) as progress:
            task = progress.add_task("measuring operators")
            return measured_table(
                net,
                Path(self.network).stem,
                images,
                threads=self.threads,
                on_progress=lambda done, of: progress.update(task, completed=done, total=of),
            )

    def _place(self, size: int) -> Path:
        return Path(f"{Path(self.network).stem}-{size}-latency.json")

    def _named(self) -> tuple[SlimmableNet, tuple[int, int, int]]:
        """Return the network of this name, and the shape of its images."""
        import torch

        from pareco.models import create_model
        from pareco.slimmable import make_slimmable

        model = create_model(
            self.network,
            num_classes=self.num_classes,
            in_chans=self.channels,
            base_width=self.base_width,
            undone_strides=self.undone_strides,
        )
        made_for = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 32, 32))
        size = self.image_size or made_for[-1]
        net = make_slimmable(
            model,
            torch.zeros(1, self.channels, size, size),
            alpha_min=0.42 if self.alpha_min is None else self.alpha_min,
            divisor=self.divisor,
            slim_head=self.slim_head,
            whole=self.whole,
        )
        return net, (self.channels, size, size)

    def _bundled(self) -> tuple[SlimmableNet, tuple[int, int, int]]:
        """Return the network of a bundle, with all widths of its front, and the shape of images."""
        from pareco.bundle import load
        from pareco.widths import Widths

        for each in fields(self):
            if each.name in _OF_NAMED and getattr(self, each.name) != each.default:
                flag = each.name.replace("_", "-")
                raise ValueError(f"--{flag}: the network of a bundle has its own, leave it out")
        bundle = load(self.network, builder=self.builder)
        net = bundle.switch()
        full = dict(zip(net.space.names, net.space.maxima, strict=True))
        shares = [
            count / full[name]
            for text in bundle.front["widths"]
            for name, count in zip(bundle.groups, Widths.parse(text), strict=True)
        ]
        least = min(0.42, *shares) if self.alpha_min is None else self.alpha_min
        net.space = replace(net.space, alpha_min=least)
        channels, height, width = net.image_shape
        return net, (channels, height, width)


_OF_NAMED = (
    *("image_size", "num_classes", "channels", "base_width", "undone_strides"),
    *("divisor", "slim_head", "whole"),
)


def _description(table: LatencyTable) -> dict[str, Any]:
    """Return what a table is of, and what it depends on."""
    from pareco.widths import Widths

    told = ("network", "image_size", "channels", "batch_size", "cpu_threads", "torch")
    return {
        **{name: getattr(table, name) for name in told},
        "machine": dict(table.machine),
        "operators": len(table.operators),
        "full": {
            kind: {"operators": count, "milliseconds": spent}
            for kind, (count, spent) in table.by_operation(Widths(table.maxima)).items()
        },
    }


def _tables(record: dict[str, Any]) -> tuple[Any, ...]:
    """Return a table of the operators, one of networks, and a line on what was compared."""
    about = "{network}, {image_size} x {image_size}".format_map(record)
    machine, images = record["machine"], record["batch_size"]
    on = machine["cpu"] if machine["device"] == "cpu" else ", ".join(machine["gpus"])
    where = f"{on}; --threads {record['cpu_threads']} --batch {images}; torch {record['torch']}"
    kinds = Table("operators", title=f"{about}: {record['operators']} operators", caption=where)
    for name in ("calls", "full network (ms)"):
        kinds.add_column(name, justify="right")
    for kind, each in record["full"].items():
        kinds.add_row(kind, str(each["operators"]), f"{each['milliseconds']:.3g}")
    networks = Table(title=f"{about}: latency of a batch (ms)", caption=record["table"])
    for name in ("widths", "predicted", "measured", "off"):
        networks.add_column(name, justify="left" if name == "widths" else "right")
    for each in record["networks"]:
        predicted, measured = each["predicted_ms"], each["measured_ms"]
        off = f"{predicted / measured - 1:+.1%}"
        networks.add_row(_short(each["widths"]), f"{predicted:.3g}", f"{measured:.3g}", off)
    return kinds, networks, *_verdict(record.get("check"))


def _short(widths: str) -> str:
    """Return the first widths, as many as fit on a line."""
    first = widths.split()
    return " ".join(first) if len(first) <= _FIT else f"{' '.join(first[:_FIT])} ..."


def _verdict(check: dict[str, Any] | None) -> tuple[str, ...]:
    if check is None:
        return ()
    rank = check["rank_correlation"]
    return (
        f"{check['networks']} networks of random widths: median error "
        f"{check['median_error']:.1%}, rank correlation {'-' if rank is None else f'{rank:.3f}'}",
    )


def failed(error: Exception) -> int:
    """Say what went wrong; return the exit status."""
    said = str(error)
    if isinstance(error, OSError) and error.filename:
        said = f"{error.filename}: {error.strerror}"
    print(f"error: {said}", file=sys.stderr)
    return 1
