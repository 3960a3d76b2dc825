"""A finished run becomes one file: with its errors, or refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load as tensors_in
from torch import nn

import pareco
from pareco import BudgetError, BundleError
from pareco.bundle.from_run import write_bundle
from pareco.config import Experiment, Machine
from pareco.data import load_data
from pareco.models import create_model
from pareco.reporting.collection import records_of
from pareco.slimmable import SlimmableNet
from pareco.training.preparation import planner_before
from replications.catalogue import method_named
from tests.bundle.conftest import Finished
from tests.experiments import TINY

pytestmark = pytest.mark.filterwarnings("error")
CHANGED = replace(
    TINY,
    name="changed",
    network=replace(TINY.network, name="cifar_vgg11", base_width=6, divisor=2, slim_head=True),
    data=replace(TINY.data, image_size=16, mean=(60.0,), std=(70.0,), central_crop=0.8),
)


NORMLESS = replace(
    TINY,
    name="normless",
    network=replace(TINY.network, name="test_convnext", base_width=None),
    data=replace(TINY.data, image_size=32),
    training=replace(TINY.training, epochs=1, warmup_epochs=0),
)


def wrong(net: nn.Module, experiment: Experiment) -> tuple[str, str]:
    """Return the top-1 and top-5 errors on the test images as front.csv has them, by NumPy."""
    images, labels = load_data(experiment.data).test.normalized(torch.arange(997))
    with torch.no_grad():
        scores = np.concatenate([net(part).numpy() for part in images.split(100)])
    best = (-scores).argsort(axis=1, kind="stable") == labels.numpy()[:, None]
    return tuple(f"{100 * (1 - best[:, :k].any(1).mean()):.4f}" for k in (1, 5))  # type: ignore


@pytest.mark.parametrize(
    ("method", "experiment"),
    [
        pytest.param("pareco", TINY, marks=pytest.mark.slow),
        ("s_net", TINY),
        pytest.param("independent", TINY, marks=pytest.mark.slow),
        ("us_net", CHANGED),
    ],
    ids=["pareco", "s_net", "independent", "changed"],
)
def test_a_shipped_network_has_the_recorded_error_to_the_last_image(
    bundled: Callable[..., Path], method: str, experiment: Experiment
) -> None:
    """Of each network of the front, as a plain one and as the one that is switched."""
    path = bundled(method, experiment)
    bundle, front = pareco.load(path), pd.read_csv(path.with_name("front.csv"), dtype=str)
    assert len(bundle.front) == len(front) >= 3
    sets = set()
    for index, row in front.iterrows():
        assert isinstance(index, int)
        recorded = row["test_top1_error"], row["test_top5_error"]
        net = bundle.network(index)
        assert not net.training
        assert not any(isinstance(each, SlimmableNet) for each in net.modules())
        assert wrong(net, experiment) == recorded
        own = bundle._networks[index]
        own.net.set_widths(own.widths, own.statistics)
        assert wrong(own.net, experiment) == recorded
        assert int(own.net.cost.macs(own.widths)) == int(row["macs"])
        sets.add(id(own.net))
    assert len(sets) == (len(front) if method_named(method).budget_exempt else 1)
    for name in ("macs", "params", "activations", "peak_activations", "search_loss"):
        assert [*bundle.front[name]] == [*front[name].astype(bundle.front[name].dtype)]
    assert (bundle.front["memory_bytes"] == 4 * bundle.front["peak_activations"]).all()


@pytest.mark.slow
def test_a_network_without_batch_norm_goes_the_same_way(bundled: Callable[..., Path]) -> None:
    """It is trained, planned, chosen and shipped, but not calibrated."""
    path = bundled("us_net", NORMLESS)
    bundle, front = pareco.load(path), pd.read_csv(path.with_name("front.csv"), dtype=str)
    for index, row in front.iterrows():
        assert isinstance(index, int)
        assert row["calibration_images"] == "0"
        recorded = row["test_top1_error"], row["test_top5_error"]
        assert wrong(bundle.network(index), NORMLESS) == recorded
    spent = json.loads(path.with_name("result.json").read_text())["ledger"]
    planned = planner_before(NORMLESS).plan(method_named("us_net"), 0).macs
    assert (spent["choice"]["forward_macs"], 0) == planned["choice"]


def test_a_bundle_says_where_it_comes_from(bundled: Callable[..., Path]) -> None:
    path = bundled("s_net")
    bundle = pareco.load(path)
    (session,) = json.loads(path.with_name("env.json").read_text())
    assert {name: bundle.origin[name] for name in ("experiment", "method", "seed", "data")} == {
        "experiment": "tiny",
        "method": "s_net",
        "seed": 0,
        "data": "digits",
    }
    for name in ("commit", "packages", "data_fingerprint"):
        assert bundle.origin[name] == session[name]
    assert bundle.classes == tuple("0123456789")


def test_weights_are_held_once_by_the_names_of_the_plain_network(
    bundled: Callable[..., Path],
) -> None:
    plain = create_model("cifar_resnet8", num_classes=10, in_chans=1, base_width=4).state_dict()
    for method in ("pareco", "s_net"):
        tensors = tensors_in(bundled(method).read_bytes())
        weights = {name for name in tensors if name.startswith("weights/")}
        assert weights == {f"weights/0/{name}" for name in plain}
        own = {name.split("/", 2)[2] for name in tensors if name not in weights}
        kinds = {name.rpartition(".")[2] for name in own}
        private = {"weight", "bias"} if method == "s_net" else set()
        assert kinds == {"running_mean", "running_var"} | private
        assert own <= plain.keys()


def test_latency_is_taken_up_where_it_was_measured(finished: Finished, tmp_path: Path) -> None:
    run = tmp_path / "tiny" / "us_net" / "seed0"
    shutil.copytree(finished("us_net"), run)
    widths = [*pd.read_csv(run / "front.csv")["widths"]]
    times = {each: 1.5 + place for place, each in enumerate(widths[1:])}
    record = {"cpu": "x", "device": "cpu", "gpus": [], "cpu_threads": 1, "batch_size": 1}
    (tmp_path / "tiny" / "latency.json").write_text(json.dumps({**record, "milliseconds": times}))
    bundle = write_bundle(run, tmp_path / "a.pareco")
    assert [*bundle.front["latency_ms"].fillna(0)] == [0, *times.values()]
    assert bundle.choice(latency_ms=2) == 1  # not the first, of which nothing is known
    with pytest.raises(BudgetError, match=r"latency_ms 1: the least is 1.5 ms"):
        bundle.for_budget(latency_ms=1)


def as_before(run: Path, folder: Path) -> Path:
    """Return a copy of a run as an earlier version left it: without statistics and classes."""
    copied = folder / "tiny" / run.parent.name / "seed0"
    shutil.copytree(run, copied)
    shutil.rmtree(copied / "statistics")
    result = json.loads((copied / "result.json").read_text())
    del result["class_names"]
    (copied / "result.json").write_text(json.dumps(result))
    return copied


@pytest.mark.parametrize("method", ["us_net", "independent"])
def test_a_run_from_before_statistics_were_kept_gets_the_same_bundle(
    finished: Finished, bundled: Callable[..., Path], tmp_path: Path, method: str
) -> None:
    run, path = as_before(finished(method), tmp_path), tmp_path / "a.pareco"
    before, after = records_of([finished(method)]), records_of([run])
    pd.testing.assert_frame_equal(after.fronts, before.fronts)
    assert after.experiment == before.experiment
    write_bundle(run, path, Machine(device="cpu"))
    assert path.read_bytes() == bundled(method).read_bytes()


def test_a_run_that_does_not_tell_enough_is_not_bundled(finished: Finished, tmp_path: Path) -> None:
    run, path = as_before(finished("s_net"), tmp_path), tmp_path / "a.pareco"
    with pytest.raises(BundleError, match=r"batch-norm weights of each network .*: run it again"):
        write_bundle(run, path, Machine(device="cpu"))
    sessions = json.loads((run / "env.json").read_text())
    (run / "env.json").write_text(json.dumps([{**sessions[0], "data_fingerprint": "other"}]))
    with pytest.raises(BundleError, match="of other images: say with --images"):
        write_bundle(run, path, Machine(device="cpu"))
    (run / "DONE").unlink()
    with pytest.raises(BundleError, match="seed0 holds no finished run"):
        write_bundle(run, path)
    assert not path.exists()
