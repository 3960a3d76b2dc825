"""Finished runs, their bundles, and images to predict."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pareco.bundle.from_run import write_bundle
from pareco.config import Experiment
from pareco.data import load_data
from pareco.training import execute_run
from replications.catalogue import method_named
from tests.bundle.making import saved
from tests.conftest import tiny_net
from tests.experiments import TINY

Finished = Callable[..., Path]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Return a function that does a run once and returns its folder, which is not to be changed."""
    runs = tmp_path_factory.mktemp("runs")

    @functools.cache
    def run(method: str, experiment: Experiment = TINY) -> Path:
        path = runs / experiment.name / method / "seed0"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WANDB_MODE", "disabled")
            execute_run(experiment, method_named(method), 0, path)
        return path

    return run


@pytest.fixture(scope="session")
def bundled(finished: Finished) -> Callable[..., Path]:
    """Return a function that returns the bundle of a run."""

    @functools.cache
    def bundle(method: str, experiment: Experiment = TINY) -> Path:
        path = finished(method, experiment)
        write_bundle(path, path / "run.pareco")
        return path / "run.pareco"

    return bundle


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Return a bundle of a user's own network: three widths, the middle one of least search loss.

    The smallest has the least test error.
    """
    path, net = tmp_path / "own.pareco", tiny_net()
    return saved(path, net, _100=(0.4, 3.0), _75=(0.3, 4.0), _42=(0.5, 1.0))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of four test images of the digits as files of eight by eight pixels."""
    folder = tmp_path_factory.mktemp("there") / "photos"
    (folder / "more").mkdir(parents=True)
    test = load_data(TINY.data).test
    (pixels, _), *_ = test.store.read([test.indices[:4]], None)
    names = ("a2.png", "a10.png", "more/b.png", "three.png")
    for name, each in zip(names, pixels, strict=True):
        Image.fromarray(each[0].numpy()).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder
