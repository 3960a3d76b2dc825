"""From a bundle to a network: a budget in, a ready network out."""

from __future__ import annotations

import copy
import errno
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import torch
from PIL import Image
from torch import Tensor, fx, nn

from pareco.bundle.export import Exported, ending, write_checked
from pareco.bundle.rebuilding import Builder, SubNetwork, rebuilt
from pareco.bundle.sealed import BundleError, Description, opened
from pareco.config import DataConfig, ExportKind
from pareco.data.pixels import as_rgb, name_order, printable, readable_formats, reason_to_leave_out
from pareco.data.transforms import Preparation, view
from pareco.files import written_whole
from pareco.slimmable import SlimmableNet
from pareco.widths import Widths

if TYPE_CHECKING:
    import pandas as pd

Images = Image.Image | str | Path | Iterable[Image.Image | str | Path]
"""Images of PIL, files or folders, or one of these."""

_AT_ONCE = 64  # images
_BYTES = 4  # of an activation, a 32-bit float
_LIMITS = {
    "macs": "MACs",
    "params": "parameters",
    "memory_bytes": "bytes of activations",
    "latency_ms": "ms",
}


class BudgetError(ValueError):
    """A budget that no network of the front keeps to."""


class UnreadableImage(ValueError):
    """A file that is no image, or a damaged one."""


class BudgetLimits(TypedDict, total=False):
    """What a network may cost at most, of one image.

    `memory_bytes` are those of the activations that are held at once, in 32-bit floats;
    `latency_ms` is of the machine that it was measured on.
    """

    macs: float | None
    params: float | None
    memory_bytes: float | None
    latency_ms: float | None


class Bundle:
    """The networks of a front on their shared weights, and what each of them costs."""

    def __init__(self, description: Description, networks: Sequence[SubNetwork]) -> None:
        """Take over what `load` found."""
        self._description, self._networks = description, networks
        reading = description.reading
        self._reading = DataConfig(name="images", **reading.model_dump(exclude={"classes"}))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the scores."""
        return self._description.reading.classes

    @property
    def origin(self) -> Mapping[str, Any]:
        """Run, commit, versions and data that the networks come from."""
        return copy.deepcopy(self._description.origin)

    @property
    def front(self) -> pd.DataFrame:
        """The networks as a table, a row for each; the row's index is that of `network`.

        Widths are channel counts, separated by blanks, in the order of `groups`; costs are of one
        image: `memory_bytes` are the activations' most at once, in 32-bit floats. Losses are in
        nats, errors in percent. NaN where a number is not known.
        """
        import pandas as pd

        table = pd.DataFrame([self._row(index) for index in range(len(self._networks))])
        unknown = ["latency_ms", "test_top1_error", "test_top5_error"]
        return table.astype(dict.fromkeys(unknown, "float64"))

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the channel groups, in the order of the widths in `front`."""
        named = {name for shipped in self._description.front for name in shipped.widths}
        return tuple(name for name in self._networks[0].net.space.names if name in named)

    def _row(self, index: int) -> dict[str, Any]:
        shipped = self._description.front[index]
        costs = shipped.model_dump(exclude={"weights", "widths"})
        chosen = self._networks[index]
        counts = dict(zip(chosen.net.space.names, chosen.widths, strict=True))
        widths = Widths(counts[name] for name in self.groups)
        memory = _BYTES * shipped.peak_activations
        return {"widths": str(widths), "memory_bytes": memory, **costs}

    def choice(self, **limits: Unpack[BudgetLimits]) -> int:
        """Return the row of the front with the least search loss within all of these limits.

        Never by the test error, which so still says how good the choice is; of equals the one of
        fewest MACs. Raises `BudgetError`, with the nearest figures that can be had, if no network
        is within, `ValueError` for one that is no number, and `TypeError` for one of another name.
        """
        return self._within(limits)[0]

    def _within(self, limits: BudgetLimits) -> list[int]:
        """Return the rows within the limits, the best first; raise as `choice`."""
        if unknown := sorted(limits.keys() - _LIMITS.keys()):
            raise TypeError(f"no limit is called {unknown[0]!r}; known: {', '.join(_LIMITS)}")
        asked = {name: float(limits[name]) for name in _LIMITS if limits.get(name) is not None}
        if nan := [name for name, limit in asked.items() if math.isnan(limit)]:
            raise ValueError(f"{nan[0]}: nan is no limit")
        rows = [self._row(index) for index in range(len(self._networks))]
        for name in asked:
            if all(row[name] is None for row in rows):
                raise BudgetError(f"{name}: it was not measured for any network of the bundle")
        within = [index for index, row in enumerate(rows) if _keeps_to(row, asked)]
        if not within:
            raise BudgetError(_nearest(rows, asked))
        return sorted(within, key=lambda index: (rows[index]["search_loss"], rows[index]["macs"]))

    def for_budget(self, **limits: Unpack[BudgetLimits]) -> fx.GraphModule:
        """Return the network that `choice` finds within the limits, ready to run.

        A plain module with a copy of its weights and its own batch-norm statistics, in evaluation
        mode; it takes what `prepared` returns. Raises as `choice`.
        """
        return self.network(self.choice(**limits))

    def network(self, index: int) -> fx.GraphModule:
        """Return the network of a row of the front, as `for_budget` does."""
        chosen = self._networks[index]
        return chosen.net.extract(chosen.widths, chosen.statistics).eval()

    def switch(self, **limits: Unpack[BudgetLimits]) -> SlimmableNet:
        """Return the one network of the bundle, switched to what `choice` finds, ready to run.

        Nothing is copied: the same object with the same weights comes back each time (one for each
        set of weights), and runs at what was asked for last, on the CPU. Raises as `choice`.
        """
        chosen = self._networks[self.choice(**limits)]
        chosen.net.set_widths(chosen.widths, chosen.statistics)
        chosen.net.keep_views()
        return chosen.net

    def prepared(self, images: Images) -> Tensor:
        """Return images as the networks see them, `n x c x h x w`.

        Turned upright, resized and cropped as in the evaluation that measured the errors, in as
        many colours, and normalized. Raises `ValueError` where there is none, and as `predict`.
        """
        read = [_read(each) for each in _listed(images)]
        if not read:
            raise ValueError("there is no image to prepare")
        return self._prepared(read)

    def _prepared(self, images: Iterable[Image.Image]) -> Tensor:
        """Return upright RGB images as `prepared` does."""
        colours = len(self._reading.mean)
        grey = colours == 1
        if colours not in (1, 3):
            raise ValueError(
                f"images have 1 or 3 colours, and the networks of the bundle take {colours}: give "
                "what for_budget returns tensors of your own"
            )
        shown = [each.convert("L") if grey else each for each in images]
        pixels = torch.stack([view(each, None, self._reading) for each in shown])
        floats = next(self._networks[0].net.parameters()).dtype
        return Preparation(self._reading).evaluation(pixels).to(floats)

    @torch.no_grad()
    def predict(
        self,
        images: Images,
        *,
        unreadable: Callable[[UnreadableImage], object] | None = None,
        **limits: Unpack[BudgetLimits],
    ) -> pd.DataFrame:
        """Return the probabilities: a row for each image, a column for each class.

        Of the network that `choice` finds within the limits. Rows are named by the files, images
        by their numbers. A folder's images are taken with those of its folders, in the order of
        their names. Raises as `choice`; `FileNotFoundError` or `UnreadableImage`, naming the file,
        unless that is to be told to `unreadable`: then the file has no row.
        """
        import pandas as pd

        network, names, parts = self.for_budget(**limits), [], []
        readable = _readable(_listed(images), unreadable)
        while some := list(itertools.islice(readable, _AT_ONCE)):
            names += [name for name, _ in some]
            scores = network(self._prepared(image for _, image in some))
            parts.append(scores.float().softmax(1))
        found = torch.cat(parts) if parts else torch.zeros(0, len(self.classes))
        return pd.DataFrame(found.numpy(), index=names, columns=list(self.classes))

    def export(
        self,
        path: str | Path,
        to: ExportKind,
        *,
        images: Images | None = None,
        **limits: Unpack[BudgetLimits],
    ) -> pd.DataFrame:
        """Write the network that `choice` finds as a file that others read; return its row.

        That is a table of one row of `front`, with the name of the file, and `largest_difference`:
        how far the scores of what was read of the file are from the network's on these images (64
        at most, or noise without), as a part of the largest score. docs/export.md has the kinds.

        Raises as `choice` and `predict`; `ExportError` if the network cannot be exported so or the
        scores differ, `OSError` if it cannot be written, `ValueError` for another ending than the
        kind's. Nothing is written then.
        """
        target, known = Path(path), ending(to)
        if target.suffix != known:
            raise ValueError(f"{printable(str(path))}: a file of the kind {to} must end in {known}")
        index = self.choice(**limits)
        with written_whole(target) as partial:
            return self._exported({index: partial}, to, images)

    def export_front(
        self,
        folder: str | Path,
        to: ExportKind,
        *,
        images: Images | None = None,
        **limits: Unpack[BudgetLimits],
    ) -> pd.DataFrame:
        """Write each network within the limits into a new folder; return their rows.

        They are as `export` returns them, also in the folder's `index.csv`. Raises as that does.
        """
        known, rows = ending(to), sorted(self._within(limits))
        if Path(folder).is_file():
            raise FileExistsError(errno.EEXIST, "a file is there already", str(folder))
        with written_whole(Path(folder)) as partial:
            partial.mkdir()
            macs = {index: self._description.front[index].macs for index in rows}
            files = {index: partial / f"{index:02}-{macs[index]}-macs{known}" for index in rows}
            table = self._exported(files, to, images)
            table.to_csv(partial / "index.csv", index_label="row")
        return table

    def _exported(
        self, files: Mapping[int, Path], to: ExportKind, images: Images | None
    ) -> pd.DataFrame:
        """Write rows of the front to files; return them, with the names and what checks found."""
        seen = None
        if images is not None:
            given = [*itertools.islice(_listed(images), _AT_ONCE)]
            if not given:
                raise UnreadableImage(f"{printable(str(images))}: no image is there")
            seen = self._prepared(map(_read, given))
        off = [write_checked(self._out(row), file, to, seen) for row, file in files.items()]
        table = self.front.loc[[*files]]
        table.insert(0, "file", [file.name for file in files.values()])
        return table.assign(largest_difference=off)

    def _out(self, index: int) -> Exported:
        """Return the network of a row with what is told of it wherever it goes."""
        chosen, network = self._networks[index], self.network(index)
        told = self._description.model_dump(mode="json", exclude={"sha256", "format", "front"})
        own = self._description.front[index].model_dump(mode="json", exclude={"weights"})
        return Exported(
            network=network,
            weights={**chosen.net.shared_weights(), **network.state_dict()},
            description={"format": "pareco-network-1", **told, "network": own},
            build=chosen.build,
        )


def load(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    builder: str | Builder | None = None,
) -> Bundle:
    """Return the bundle in a file, its networks on the CPU.

    Opening it runs no code of the file's: its network is one of timm or ours, by name. Of any
    other, which `save_bundle` wrote, the caller gives what the file cannot be trusted with: the
    `model` as it was before `make_slimmable` (whose weights do not matter) or the `builder` that
    returns it, not both: a function, or its place such as "mypackage.networks:make_net" or
    "nets.py:make_net".

    Raises `BundleError`, saying what is wrong, for a file that is truncated, altered, newer, or no
    bundle, or does not fit the network; `OSError` if it cannot be read.
    """
    if model is not None and builder is not None:
        raise ValueError("give load a model or a builder, not both")
    content = Path(path).read_bytes()
    try:
        description, tensors = opened(content)
        given = model if model is not None else builder
        return Bundle(description, rebuilt(description, tensors, given))
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error


def _keeps_to(row: Mapping[str, Any], limits: Mapping[str, float]) -> bool:
    return all(row[name] is not None and row[name] <= limit for name, limit in limits.items())


def _nearest(rows: Sequence[Mapping[str, Any]], limits: Mapping[str, float]) -> str:
    """Say what can be had: the least of what no network keeps to or, if none is such, of each."""

    def least(name: str, within: Mapping[str, float]) -> float | None:
        known = (row for row in rows if row[name] is not None and _keeps_to(row, within))
        return min((row[name] for row in known), default=None)

    found = {name: least(name, {}) for name in limits}
    beyond = {
        name: each for name, each in found.items() if each is not None and each > limits[name]
    }
    others = ""
    if not beyond:
        others = " within the other limits"
        found = {n: least(n, {k: x for k, x in limits.items() if k != n}) for n in limits}
        beyond = {name: each for name, each in found.items() if each is not None}
    said = [
        f"{name} {_figure(limits[name])}: the least{others} is {each:,} {_LIMITS[name]}"
        for name, each in beyond.items()
    ]
    nothing = "these limits exclude each other"
    return f"no network of the front is within the budget: {'; '.join(said) or nothing}"


def _figure(limit: float) -> str:
    return f"{int(limit):,}" if limit.is_integer() else f"{limit:,g}"


def _listed(images: Images) -> Iterable[Image.Image | Path]:
    """Yield images and files, those of folders in their place; a folder without any, itself."""
    for each in [images] if isinstance(images, Image.Image | str | Path) else images:
        if isinstance(each, Image.Image):
            yield each
        elif Path(each).is_dir():
            folder = Path(each)
            files = {str(file.relative_to(folder)): file for file in folder.rglob("*")}
            found = [
                files[name]
                for name in sorted(files, key=name_order)
                if files[name].is_file() and reason_to_leave_out(name) is None
            ]
            yield from found or [folder]
        else:
            yield Path(each)


def _readable(
    images: Iterable[Image.Image | Path], unreadable: Callable[[UnreadableImage], object] | None
) -> Iterator[tuple[str | int, Image.Image]]:
    """Yield names, or numbers, and images as `_read` returns them, without what it cannot read."""
    for number, image in enumerate(images):
        try:
            read = _read(image)
        except (FileNotFoundError, UnreadableImage) as error:
            if unreadable is None:
                raise
            if isinstance(error, FileNotFoundError):
                error = UnreadableImage(f"{printable(str(image))}: {error.strerror}")
            unreadable(error)
        else:
            yield printable(str(image)) if isinstance(image, Path) else number, read


def _read(image: Image.Image | Path) -> Image.Image:
    """Return an image upright and as RGB; raise `UnreadableImage` with the name of a file."""
    if isinstance(image, Image.Image):
        return _upright_rgb(image)
    if image.is_dir():
        raise UnreadableImage(f"{printable(str(image))}: no image is there")
    try:
        with Image.open(image, formats=readable_formats()) as opened_image:
            return as_rgb(opened_image)
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow raises anything
        name = printable(str(image))
        raise UnreadableImage(f"{name} cannot be read as an image: {error}") from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Return an image as the networks' data had it, and leave the caller's as it is."""
    info = image.info.copy()
    try:
        return as_rgb(image)
    finally:
        image.info = info
