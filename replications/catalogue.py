"""Which experiments, scales and methods there are: the folders and files are the registry."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING

import baselines
import replications
from pareco.config import DATA_SETS, EMBEDDED, Experiment
from replications.scales import PUBLISHED, SCALES, Scale

if TYPE_CHECKING:
    from pareco.methods import Method


FOCUS = "pareco"
OPENING = "cifar10_vgg"
"""The experiment that the page opens with."""
REFERENCE = "us_net"
"""The method whose total cost is 100% of what methods took, where it has run."""


def experiment_names() -> list[str]:
    """Return the names of all experiments: the folders here that hold an `experiment.py`."""
    return sorted(
        file.parent.name
        for folder in replications.__path__
        for file in Path(folder).glob("*/experiment.py")
    )


def experiment_named(
    name: str, scale: str = PUBLISHED, images: str | None = None, data_name: str | None = None
) -> Experiment:
    """Return the configuration of an experiment at a scale.

    One whose folder has a function `fitted` is made for the images that lie at a location, a data
    set of this name (by default the location's). Raises `ValueError` with the known names, and the
    nearest, for an unknown experiment or scale; `ValueError` or `OSError` for images that are
    none, or do not suffice.
    """
    scales, module = scales_of(name), _module(name)
    scale = _known("scale", scale, scales)
    experiment = module.EXPERIMENT
    if images is not None and takes_any_images(name):
        from pareco.data.contents import contents_of

        experiment = module.fitted(contents_of(images), data_name or data_set_name(images))
    return replace(scales[scale](experiment), name=name_at(experiment.name, scale))


def takes_any_images(name: str) -> bool:
    """Return whether an experiment is made for the images that it is given."""
    return hasattr(_module(name), "fitted")


def data_set_name(images: str) -> str:
    """Return what the images at a location are called: as its folder, in letters that a name has.

    It is not that of a known data set, and doesn't end as a scale. Raises `ValueError` where no
    letter is left.
    """
    folder = Path(images).expanduser().resolve().name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder).strip("-.")
    if not name:
        raise ValueError(f"--images {images}: name this data set, --data.name NAME")
    scales = tuple(f"-{scale}" for _, _, scale in catalogued())
    return f"{name}-images" if name in DATA_SETS or name.endswith(scales) else name


def scales_of(name: str) -> dict[str, Scale]:
    """Return the scales of an experiment by name: those of all, and the `SCALES` of its folder.

    Raises `ValueError` for an unknown experiment.
    """
    return SCALES | getattr(_module(name), "SCALES", {})


def scales_on_images(name: str) -> list[str]:
    """Return the scales of an experiment at which its images are not embedded ones."""
    scales = scales_of(name)
    return [each for each in scales if experiment_named(name, each).data.name not in EMBEDDED]


def name_at(name: str, scale: str) -> str:
    """Return the name of runs at a scale: it ends with the scale, unless that is the paper's."""
    ending = "" if scale == PUBLISHED else f"-{scale}"
    return name if name.endswith(ending) else name + ending


def equal_compute_name(name: str, scale: str) -> str:
    """Return the name of runs at a scale whose methods have equal MACs, not equal passes."""
    plain = name.removesuffix(f"-{scale}").removesuffix("-compute")
    return name_at(f"{plain}-compute", scale)


def catalogued() -> Iterator[tuple[str, str, str]]:
    """Yield the name that each experiment has at each scale, the experiment, and the scale."""
    for experiment in experiment_names():
        for scale in scales_of(experiment):
            yield name_at(experiment, scale), experiment, scale


def check_scale(scale: str) -> None:
    """Raise `ValueError` with the known scales, and the nearest, for one that no experiment has."""
    _known("scale", scale, dict.fromkeys(known for _, _, known in catalogued()))


def method_names() -> list[str]:
    """Return the names of PareCO and of the baselines, each that of its file; imports none."""
    return sorted(_method_modules())


def method_places(
    requests: Iterable[str], others: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """Return where the methods are that a user asks for, by their names, as `method_at` takes it.

    A request is a known name, or one of the `others`, which are placed already; or it is where a
    method of the user's own is, as `own_method` takes it: that code is run. Raises `ValueError` as
    that does; with the known names, and the nearest, for a name that is not there; for an own
    method with the name of another.
    """
    found: dict[str, str] = {}
    for request in requests:
        name, place = request, others.get(request, request)
        if _is_own(request):
            name, place = _named_and_placed(request)
            if name in method_names():
                raise ValueError(f"{request}: {name} is another method, give yours its own `name`")
            if (theirs := (found | dict(others)).get(name, place)) != place:
                raise ValueError(f"{place} and {theirs} are both named {name!r}, rename one")
        found[name] = place
    names = (*method_names(), *others, *(name for name, at in found.items() if name != at))
    for name in found:
        _known("method", name, names, "; one of your own is FILE.py or MODULE:CLASS")
    return found


def method_at(place: str) -> type[Method]:
    """Return the method that `method_places` has placed: a known one, or by running its code.

    So the place has to come from the user, never from what is loaded.
    """
    from pareco.methods import own_method

    return own_method(place) if _is_own(place) else method_named(place)


def method_named(name: str) -> type[Method]:
    """Return a method; raise `ValueError` with the known names, and the nearest, for another."""
    from pareco.methods import method_in

    known = _known("method", name, method_names())
    return method_in(_method_modules()[known], known)


def _is_own(request: str) -> bool:
    return request.endswith(".py") or not {":", "/"}.isdisjoint(request)


def _named_and_placed(request: str) -> tuple[str, str]:
    """Return the name of a method of the user's own, and its place from whatever folder."""
    from pareco.methods import own_method

    file, ending, kind = request.rpartition(".py")
    place = f"{Path(file + ending).expanduser().resolve()}{kind}" if ending else request
    return own_method(request).name, place


def _method_modules() -> dict[str, str]:
    files = (file for folder in baselines.__path__ for file in Path(folder).glob("[!_]*.py"))
    return {"pareco": "pareco.width_search"} | {
        each.stem: f"baselines.{each.stem}" for each in files
    }


def _module(name: str) -> ModuleType:
    known = _known("experiment", name, experiment_names())
    return importlib.import_module(f"replications.{known}.experiment")


def _known(kind: str, name: str, names: Collection[str], more: str = "") -> str:
    """Return the name; raise `ValueError` unless it is one of the names."""
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}{more}")
    return name
