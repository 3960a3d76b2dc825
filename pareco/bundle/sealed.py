"""The one file of a bundle: a description and tensors in safetensors, sealed by a checksum.

docs/bundle-format.md describes it. Reading it runs no code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

FORMAT = 1
"""The version of the format that is written, and the newest that is read."""

_KEY = "pareco"  # of the one entry of the header's metadata
_BLANK = "0" * 64  # what the checksum is taken with in its own place
_LENGTH = 8  # bytes that say how long the header is
_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, RecursionError)


class BundleError(ValueError):
    """A file that is no bundle, is damaged, is newer than this version, or does not fit."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Count = Annotated[int, Field(ge=1, lt=2**31)]
Amount = Annotated[int, Field(ge=0, lt=2**63)]
Percent = Annotated[float, Field(ge=0, le=100)]


class Architecture(_Strict):
    """A network by name and arguments: all that a file may say of how it is built."""

    name: str
    num_classes: Count
    in_chans: Count
    base_width: Annotated[int, Field(ge=1, le=4096)] | None = None
    undone_strides: Annotated[int, Field(ge=0, le=8)] = 0


class Reading(_Strict):
    """How an image becomes what the network sees, and what its classes are called."""

    image_size: Annotated[int, Field(ge=8, le=8192)]
    central_crop: Annotated[float, Field(gt=0, le=1)]
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError("mean and std are not as many")
        return self


class Shipped(_Strict):
    """A network of the front: its channel counts by group, costs and errors.

    Losses are in nats, errors in percent, latency in milliseconds for one image; None where a
    number is not known. `weights` is the set of weights that it runs on.
    """

    weights: Amount
    widths: Annotated[dict[str, Count], Field(min_length=1)]
    macs: Amount
    params: Amount
    activations: Amount
    peak_activations: Amount
    latency_ms: Annotated[float, Field(gt=0)] | None = None
    search_loss: float
    test_top1_error: Percent | None = None
    test_top5_error: Percent | None = None


class Description(_Strict):
    """All of a bundle but its tensors."""

    sha256: str
    format: str
    architecture: Architecture | None = None
    whole: Annotated[tuple[str, ...], Field(max_length=10_000)] = ()
    builder: str | None = None
    """What built the network, for people: no file has it run."""
    reading: Reading
    origin: dict[str, str | int | bool | dict[str, str] | None] = {}
    """Where it comes from: run, commit, versions, data and their fingerprint."""
    latency: dict[str, str | int | list[str] | None] = {}
    """How latency was measured, and on what machine."""
    front: Annotated[tuple[Shipped, ...], Field(min_length=1)]


def sealed(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Return the file of a bundle: `description` has the fields of `Description` but the first two.

    Raises `BundleError` if they are not such.
    """
    text = json.dumps({"sha256": _BLANK, "format": f"pareco-bundle-{FORMAT}", **description})
    _described(text)
    held = {name: each.detach().cpu().contiguous().clone() for name, each in tensors.items()}
    content = save(held, {_KEY: text})
    digest = hashlib.sha256(content).hexdigest()
    return content.replace(_BLANK.encode(), digest.encode(), 1)


def opened(content: bytes) -> tuple[Description, dict[str, Tensor]]:
    """Return what `sealed` made a file of. Raises `BundleError`, saying what is wrong with it."""
    size = int.from_bytes(content[:_LENGTH], "little")
    if content[_LENGTH : _LENGTH + 1] not in (b"{", b""):
        raise BundleError("it is no bundle")
    if len(content) < _LENGTH + max(size, 1):
        raise BundleError(f"it is truncated, or no bundle: {len(content)} bytes are not all")
    try:
        header = json.loads(content[_LENGTH : _LENGTH + size])
        text = header.get("__metadata__", {}).get(_KEY)
        if not isinstance(text, str):
            raise BundleError("it is a safetensors file, but no bundle")
        outer = json.loads(text)
        _check_version(outer["format"])
        tensors = [each for name, each in header.items() if name != "__metadata__"]
        ends = [int(each["data_offsets"][1]) for each in tensors]
        digest = outer["sha256"].encode()
    except BundleError:
        raise
    except _DAMAGE as error:
        raise BundleError(f"its header is damaged ({error})") from error
    whole = _LENGTH + size + max(ends, default=0)
    if len(content) < whole:
        raise BundleError(f"it is truncated: {len(content)} bytes of {whole}")
    place = content.find(digest, _LENGTH, _LENGTH + size)
    blank = content[:place] + _BLANK.encode() + content[place + len(digest) :]
    if place < 0 or hashlib.sha256(blank).hexdigest().encode() != digest:
        raise BundleError("it was altered or damaged: its checksum is another")
    try:
        return _described(text), load(content)
    except BundleError:
        raise
    except (SafetensorError, *_DAMAGE) as error:
        raise BundleError(f"its tensors cannot be read ({error})") from error


def _check_version(found: str) -> None:
    match = re.fullmatch(r"pareco-bundle-([0-9]{1,9})", found)
    if match is None:
        raise BundleError(f"it is of the format {found!r}, which is no bundle's")
    if int(match[1]) > FORMAT:
        raise BundleError(
            f"it is a newer bundle: of format {match[1]}, this version reads up to {FORMAT}. "
            "Update pareco"
        )


def _described(text: str) -> Description:
    try:
        return Description.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, fault["loc"]))
        raise BundleError(f"its description is wrong: {place}: {fault['msg']}") from error
