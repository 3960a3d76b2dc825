"""Which networks of timm can be made slimmable: each tried by itself, in a process of its own."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pareco.processes import worker_context
from pareco.search_config import require

if TYPE_CHECKING:
    from torch import nn

    from pareco.slimmable import SlimmableNet

_SIZES = {
    *("atto", "femto", "pico", "nano", "micro", "mini", "tiny", "small", "medium", "base", "large"),
    *("xlarge", "xxlarge", "huge", "giant", "s", "m", "l", "xl", "xs", "xxs", "xxl", "t", "b", "n"),
}
"""Words of a network's name that say how large it is."""
_CHECKED_AT = 64
"""Height and width of the images of a check, in pixels, unless the network wants its own."""
_TOLERANCE = 1e-6
"""Of doubles, through at most hundreds of layers, in parts of the greatest score."""
_LONGEST = 118
"""Characters of a line of the document."""


@dataclass(frozen=True, kw_only=True)
class Surveyed:
    """What was found about a network; costs are multiply-accumulates, for one image.

    `reason` says why it cannot be made slimmable, and `node` where; "" if it can. `checked` tells
    that its sub-networks gave what the extracted ones give, `fault` what was wrong with them.
    `whole` has the modules that run whole, # for the numbers in their paths, where it cannot
    without.
    """

    network: str
    image_size: int = 0
    groups: int = 0
    full: int = 0
    smallest: int = 0
    node: str = ""
    reason: str = ""
    checked: bool = False
    fault: str = ""
    whole: Sequence[str] = ()

    __pydantic_config__: ClassVar = {"extra": "forbid"}


def architecture(name: str) -> str:
    """Return what a network's name says beside its size: without numbers, but those of versions."""
    first, *others = re.sub(r"(?<!v)\d+", "", name).split("_")
    return "_".join([first, *(word for word in others if word and word not in _SIZES)])


def architectures() -> list[str]:
    """Return the first network, in natural order, of each `architecture` that timm has."""
    import timm

    chosen: dict[str, str] = {}
    for name in timm.list_models():
        chosen.setdefault(architecture(name), name)
    return list(chosen.values())


def convolutional(model: nn.Module) -> bool:
    """Return whether at least two of its convolutions have windows that overlap.

    The patches of a vision transformer do not.
    """
    from torch import nn

    convolutions = (each for each in model.modules() if isinstance(each, nn.Conv2d))
    overlap = (max(each.kernel_size) > max(each.stride) for each in convolutions)
    return sum(overlap) > 1


def survey(
    names: Iterable[str], *, limit_s: float, check: bool, alpha_min: float = 0.42
) -> Iterator[Surveyed]:
    """Yield what is found about each network that is convolutional; others are left out.

    Each has a process of its own: one that takes more than `limit_s` seconds, or dies, is not
    slimmable, and says so. With `check` those that are slimmable are run, see `fault_of`.
    """
    context = worker_context("pareco.survey", "pareco.slimmable", "timm", "torchvision")
    for name in names:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(theirs, name, check, alpha_min))
        process.start()
        theirs.close()
        found: list[dict[str, Any]] = []
        late = False
        try:
            while not late and (not found or (check and found[-1].get("groups"))):
                late = not ours.poll(limit_s)
                if not late:
                    found.append(ours.recv())
        except EOFError:
            pass
        if late:
            process.kill()
        process.join()
        ours.close()
        end = f"no answer in {limit_s:g} s" if late else f"its process ended ({process.exitcode})"
        yield from _row(name, found, end, check)


def read(path: Path) -> dict[str, Surveyed]:
    """Return what a file of JSON lines says about each network; of several lines, the last.

    Raises `ValueError` for another file, `OSError` where there is none.
    """
    found: dict[str, Surveyed] = {}
    from pydantic import TypeAdapter

    reading = TypeAdapter(Surveyed)
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            told = reading.validate_json(line)
            require(not told.groups or told.full > 0, "a network costs nothing")
        except ValueError as error:
            problem = f"line {number} is none of pareco survey --json"
            raise ValueError(f"--found: {path}: {problem}") from error
        found[told.network] = told
    return found


def _row(name: str, found: list[dict[str, Any]], end: str, check: bool) -> Iterator[Surveyed]:
    """Yield what a process has told; `end` says how it ended."""
    if not found:
        yield Surveyed(network=name, reason=end)
    elif found[-1]:
        told = Surveyed(network=name, **{key: x for each in found for key, x in each.items()})
        unfinished = check and told.groups and not (told.checked or told.fault)
        yield Surveyed(**{**asdict(told), "fault": end}) if unfinished else told


def _answer(connection: Connection, name: str, check: bool, alpha_min: float) -> None:
    """Send what is found about a network, and then what a check finds; nothing: it is left out."""
    import timm
    import torch

    from pareco.slimmable import TracingError, make_slimmable
    from pareco.slimmable.whole import AUTO, pattern

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # that sub-networks are not calibrated
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
        if not convolutional(model):
            connection.send({})
            return
        size = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[-1]
        image = torch.zeros(1, 3, size, size, device="meta")
        net = make_slimmable(model, image, alpha_min=alpha_min, whole=[AUTO])
    except TracingError as error:
        connection.send({"node": error.node, "reason": error.reason})
        return
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        connection.send({"reason": f"timm or torch fails ({said})"})
        return
    space, macs = net.space, net.cost.macs_at
    connection.send(
        {
            "image_size": size,
            "groups": len(space.groups),
            "full": macs(space.largest),
            "smallest": macs(space.smallest),
            "whole": sorted(set(map(pattern, net.whole))),
        }
    )
    if check:
        try:
            fault = fault_of(timm.create_model(name, num_classes=10), size, net.whole)
        except Exception as error:
            fault = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        connection.send({"checked": not fault, "fault": fault})


def fault_of(model: nn.Module, size: int, whole: Collection[str] = ()) -> str:
    """Return what is wrong with the slimmable form of a network, run in double precision; "": none.

    On small images, or on those it is made for, of `size` pixels: the full network must give the
    scores of the model, bit for bit, and the smallest and two random sub-networks those of the
    extracted ones, with the multiply-accumulates that torch counts and the parameters that they
    have. All vectors of parameters and statistics are drawn at random: zeros would hide faults.
    """
    import torch

    from pareco.slimmable import make_slimmable

    generator = torch.Generator().manual_seed(0)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and (tensor.dim() < 2 or tensor[0].numel() == 1):
            drawn = torch.rand(tensor.shape, generator=generator) + 0.5
            tensor.data = drawn - 1 if "bias" in name or "mean" in name else drawn
    model = model.double().eval()
    for pixels in dict.fromkeys((min(size, _CHECKED_AT), size)):
        shape = (2, 3, pixels, pixels)
        images = torch.randn(shape, generator=generator, dtype=torch.double)
        try:
            net = make_slimmable(model, images[:1], alpha_min=0.3, whole=whole).eval()
        except ValueError:
            if pixels == size:
                raise
            continue
        return _fault(model, net, images, generator)
    return ""


def _fault(model: nn.Module, net: SlimmableNet, images: Any, generator: Any) -> str:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from pareco.slimmable.whole import taken_apart

    with torch.no_grad():
        if not torch.equal(net(images), model(images)):
            return "the full network gives other scores than the model"
        drawn = (net.space.sample(generator) for _ in range(2))
        for widths in (net.space.smallest, *drawn):
            plain = net.extract(widths)
            with taken_apart(), FlopCounterMode(display=False) as counter:
                plain(images[:1])
            with net.at(widths):
                scores, expected = net(images), plain(images)
            if not bool(scores.isfinite().all()):
                return "scores are not finite"
            if float((scores - expected).abs().max()) > _TOLERANCE * float(expected.abs().max()):
                return "a sub-network gives other scores than the extracted one"
            if 2 * net.cost.macs_at(widths) != counter.get_total_flops():
                return "its multiply-accumulates are not those that torch counts"
            if int(net.cost.params(widths)) != sum(p.numel() for p in plain.parameters()):
                return "its parameters are not counted right"
    return ""


def document(found: Sequence[Surveyed], versions: str) -> str:
    """Return what was found as the text of docs/survey.md; `versions` are those used."""
    slimmable = [each for each in found if each.groups and not each.whole]
    around = [each for each in found if each.groups and each.whole]
    refused = [each for each in found if not each.groups]
    checked = sum(each.checked for each in found)
    faults = [f"- `{each.network}`: {each.fault}" for each in found if each.fault]
    kinds = Counter(map(_kind, refused)).most_common()
    return "\n".join(
        [
            *_HEAD,
            f"{versions}. Of {len(found)} networks **{len(slimmable)} can be made slimmable, and",
            f"{len(around)} more around modules that run whole**, such as attention, and keep all",
            f"channels; {checked} of them were checked as above, with {len(faults)} faults.",
            *(["", "## Faults", "", *faults] if faults else []),
            *("", "## Slimmable", ""),
            *("| network | pixels | groups | MACs, full | smallest | checked |",),
            *("| --- | --: | --: | --: | --: | --- |",),
            *map(_slimmable_row, slimmable),
            *("", "## Slimmable around modules that run whole", ""),
            "`whole`: their paths, # for numbers; those of the type that has no rule.",
            *("", "| network | pixels | groups | MACs, full | smallest | checked | whole |"),
            *("| --- | --: | --: | --: | --: | --- | --- |",),
            *map(_around_row, around),
            *("", "## Why others are refused", ""),
            *("| reason | networks |", "| --- | --: |"),
            *(f"| {_cell(kind, 100)} | {count} |" for kind, count in kinds),
            *("", "## Refused", "", "| network | node | reason |", "| --- | --- | --- |"),
            *map(_refused_row, refused),
            "",
        ]
    )


_HEAD = (
    "# Networks of timm that can be made slimmable",
    "",
    "Made by `pareco survey --check` of [its lines](survey.jsonl) (`--json`); not edited by hand.",
    "All took 40 minutes of one core of an AMD EPYC with other work beside. One network of each",
    "architecture: of names that are alike but for numbers (other than those of versions, as v2)",
    "and for words that say a size, the first. Left out are those without two convolutions whose",
    "windows overlap, such as vision transformers. Each was made slimmable at its own image size,",
    "in a process of its own with a limit of time; the smallest network has 0.42 of the channels.",
    "Checked means: run in double precision at small images, its vectors of weights drawn at",
    "random, the full network gave the scores of the model bit for bit; the smallest and two",
    "random sub-networks those of the extracted plain networks, whose multiply-accumulates",
    "(MACs), as torch counts them, and parameters are as foretold.",
    "",
)


def _slimmable_row(each: Surveyed) -> str:
    part = f"{each.smallest / 1e6:,.0f} M ({each.smallest / each.full:.0%})"
    told = "yes" if each.checked else "**fault**" if each.fault else "no"
    sizes = f"{each.image_size} | {each.groups} | {each.full / 1e6:,.0f} M | {part}"
    return f"| {each.network} | {sizes} | {told} |"


def _around_row(each: Surveyed) -> str:
    start = f"{_slimmable_row(each)} "
    return f"{start}{_cell(', '.join(each.whole), _LONGEST - len(start))} |"


def _refused_row(each: Surveyed) -> str:
    start = f"| {each.network} | {_cell(each.node, 50)} | "
    return f"{start}{_cell(each.reason, _LONGEST - len(start))} |"


def _kind(each: Surveyed) -> str:
    """Return a reason without what is of one network alone."""
    return re.sub(r"\d+", "N", re.sub(r" ?\(.*", "", each.reason))


def _cell(text: str, most: int) -> str:
    """Return a text for a cell of a table, cut to so many characters."""
    plain = text.replace("|", "/")
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"
