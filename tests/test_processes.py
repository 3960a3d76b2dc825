"""Two gloo processes on CPU: the same weights as one process, one history, no hang."""

import builtins
import io
import json
import os
import shlex
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from pareco import processes as processes_module
from pareco.processes import (
    Processes,
    Share,
    set_arithmetic,
    tf32_in_use,
    usable_cores,
    visible_devices,
)
from pareco.slimmable.layers import SlicedBatchNorm
from tests.conftest import tiny_net
from tests.experiments import TINY
from tests.two_processes import MEASURED, observed_run

ROOT = Path(__file__).parent.parent
LAUNCHERS = {
    "torchrun": "torch.distributed.run --standalone --nproc-per-node=2",
    "restarting": "torch.distributed.run --standalone --max-restarts=1 --nproc-per-node=2",
    "accelerate": "accelerate.commands.launch --multi_gpu --num_processes=2 --num_machines=1 "
    "--mixed_precision=no --dynamo_backend=no --num_cpu_threads_per_process=1 "
    "--main_process_port=0",
}
STEPS = 16  # 2 epochs of 800 images in batches of 100
# float32 sums in another order, over 16 steps: 9e-5 measured.
TOLERANCE = 5e-4


def launched(launcher: str, folder: Path, *runs: str) -> subprocess.CompletedProcess[str]:
    how = LAUNCHERS[launcher].split()
    command = [sys.executable, "-m", *how, "-m", "tests.two_processes", str(folder)]
    environment = os.environ | {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *runs], capture_output=True, text=True, timeout=600, env=environment, check=False
    )


def ended(result: subprocess.CompletedProcess[str]) -> str:
    """Return what launched processes said before they failed, as they must."""
    assert result.returncode != 0
    return result.stderr + result.stdout


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of runs that one process did."""
    folder = tmp_path_factory.mktemp("one")
    for method in ("us_net", "s_net", "random_widths"):
        observed_run(folder / method, method, rank=0)
    observed_run(folder / "late", "us_net", rank=0, accident="late")
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of runs that two processes did."""
    folder = tmp_path_factory.mktemp("two")
    runs = ("us_net=us_net", "alone=us_net/alone", "odd=us_net/odd", "whole=pareco")
    result = launched("torchrun", folder, *runs)
    assert result.returncode == 0, result.stderr + result.stdout
    return folder


@pytest.fixture(scope="module")
def more(two: Path) -> Path:
    """Return the folder of `two`, with more runs; `parts` was interrupted once."""
    folder, choices = two, ("choice=us_net/choosing", "choice=us_net")
    runs = ("s_net=s_net", "late=us_net/late", "differ=us_net/differ", *choices)
    said = ended(launched("torchrun", folder, *runs, "parts=pareco/terminate"))
    assert (folder / "parts/run/checkpoints").exists(), said
    assert not (folder / "parts/run/DONE").exists()
    rest = ("random_widths=random_widths", "parts=pareco", "died=us_net/raise")
    (folder / "died.txt").write_text(ended(launched("accelerate", folder, *rest)))
    return folder


def weights(folder: Path, rank: int = 0) -> dict[str, Tensor]:
    return load_file(folder / f"rank{rank}.safetensors")


def notes(folder: Path, rank: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"rank{rank}.json").read_text())


def largest_difference(weights: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    assert weights.keys() == others.keys()
    return max(float((weights[name] - others[name]).abs().max()) for name in weights)


METHODS = [
    ("two", "us_net"),
    pytest.param("more", "s_net", marks=pytest.mark.slow),
    pytest.param("more", "random_widths", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("fixture", "method"), METHODS)
def test_two_processes_train_the_weights_of_one_with_the_joined_batch(
    one: Path, fixture: str, method: str, request: pytest.FixtureRequest
) -> None:
    """The last of them under `accelerate launch`, the others under `torchrun`."""
    two: Path = request.getfixturevalue(fixture)
    for rank in (0, 1):
        assert notes(two / method, rank)["widths"] == notes(one / method)["widths"]
        difference = largest_difference(weights(one / method), weights(two / method, rank))
        assert difference < TOLERANCE
    metrics = [
        [json.loads(line) for line in (run / method / "run/metrics.jsonl").read_text().splitlines()]
        for run in (one, two)
    ]
    assert len(metrics[0]) == STEPS
    for single, joint in zip(*metrics, strict=True):
        assert joint == pytest.approx(single, rel=1e-3)


def ledger(folder: Path) -> dict[str, dict[str, float]]:
    return json.loads((folder / "run/result.json").read_text())["ledger"]


def macs(folder: Path) -> dict[str, tuple[float, float]]:
    """Return the MACs of each phase, forward and backward."""
    spent = ledger(folder)
    return {phase: (each["forward_macs"], each["backward_macs"]) for phase, each in spent.items()}


@pytest.mark.parametrize(("fixture", "method"), METHODS)
def test_two_processes_spend_what_one_does(
    one: Path, fixture: str, method: str, request: pytest.FixtureRequest
) -> None:
    """To the MAC, before the front is known, whose test has as many images for each network."""
    two: Path = request.getfixturevalue(fixture)
    single, joint = macs(one / method), macs(two / method)
    fronts = [pd.read_csv(each / method / "run/front.csv") for each in (one, two)]
    tested = [997 * sum(front["macs"]) for front in fronts]  # rounding may choose another one
    assert [single.pop("test"), joint.pop("test")] == [(count, 0) for count in tested]
    assert joint == single
    for each in ledger(two / method).values():
        assert each["device_seconds"] == pytest.approx(2 * each["seconds"])


@pytest.mark.slow
def test_an_interrupted_run_of_two_processes_has_the_same_ledger(more: Path) -> None:
    front = pd.read_csv(more / "choice/run/front.csv")
    space = tiny_net().space
    order = dict.fromkeys([space.largest, space.smallest, *space.spread(16)])  # the ends first
    before = [str(widths) for widths in order][:MEASURED]
    again = 200 * int(front[front["widths"].isin(before)]["macs"].sum())  # calibrated twice
    for whole, parts in (("whole", "parts"), ("us_net", "choice")):
        ledgers = [macs(more / run) for run in (whole, parts)]
        spent = [each.pop("lost") for each in ledgers]
        assert ledgers[0] == ledgers[1]
        assert spent[0] == (0, 0)
        assert spent[1] == ((again, 0) if parts == "choice" else (0, 0))  # nothing of a step


def test_joint_batch_norm_sends_once_a_layer_in_each_direction(one: Path, two: Path) -> None:
    """And the gradients of a step are one reduction; a process alone sends nothing."""
    layers = STEPS * 4 * notes(one / "us_net")["norms"]  # of four networks in each step
    expected = {two / "us_net": (layers, layers + STEPS), two / "alone": (0, STEPS)}
    for folder, counts in (expected | {one / "us_net": (0, 0)}).items():
        found = notes(folder)
        assert (found["gathered"], found["reduced"]) == counts


def test_batch_norm_of_each_process_alone_gives_other_weights(one: Path, two: Path) -> None:
    """So that the tolerance above means something."""
    assert largest_difference(weights(one / "us_net"), weights(two / "alone")) > 10 * TOLERANCE


def test_processes_agree_bit_for_bit(two: Path) -> None:
    assert notes(two / "whole", 0) == notes(two / "whole", 1)
    assert largest_difference(weights(two / "whole", 0), weights(two / "whole", 1)) == 0
    budget = json.loads((two / "whole/run/result.json").read_text())["budget"]
    assert budget["gradient_steps"] == STEPS


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_where_it_was_interrupted(more: Path) -> None:
    assert 0 < len(notes(more / "parts")["widths"]) < STEPS
    for name in ("front.csv", "metrics.jsonl"):
        texts = [(more / run / "run" / name).read_text() for run in ("whole", "parts")]
        assert texts[0] == texts[1]
    assert largest_difference(weights(more / "whole", 0), weights(more / "parts", 1)) == 0


@pytest.mark.slow
def test_the_choice_of_two_processes_goes_on_where_it_was_interrupted(more: Path) -> None:
    """In the same two processes, which may claim the folder again; no step is done twice."""
    for rank in (0, 1):
        assert "interrupted by SIGTERM" in (more / f"choice/refused{rank}").read_text()
    for name in ("front.csv", "metrics.jsonl"):
        texts = [(more / run / "run" / name).read_text() for run in ("us_net", "choice")]
        assert texts[0] == texts[1]
    results = [more / run / "run/result.json" for run in ("us_net", "choice")]
    budgets = [json.loads(result.read_text())["budget"] for result in results]
    assert budgets[0] == budgets[1]


@pytest.mark.slow
def test_losses_of_two_processes_that_are_read_later_are_the_same(one: Path, more: Path) -> None:
    """Every third step; the first process's method hears what one process would tell it."""
    texts = [(more / run / "run/metrics.jsonl").read_text() for run in ("us_net", "late")]
    assert texts[0] == texts[1]
    assert largest_difference(weights(more / "us_net"), weights(more / "late", 1)) == 0
    single, joint = notes(one / "late")["heard"], notes(more / "late")["heard"]
    assert notes(more / "late", 1)["heard"] == []
    assert [step for step, _, _ in joint] == [*range(STEPS)]
    for alone, together in zip(single, joint, strict=True):
        assert together[:2] == alone[:2]
        assert together[2] == pytest.approx(alone[2], rel=1e-3)


@pytest.mark.slow
def test_processes_are_compared_at_every_checkpoint(more: Path) -> None:
    """One weight of one process was changed in the fifth step; nothing was saved after it."""
    saved = [int(file.stem) for file in (more / "differ/run/checkpoints").glob("*.safetensors")]
    assert sorted(saved) == [3, 4]
    for rank in (0, 1):
        said = (more / f"differ/refused{rank}").read_text()
        assert "process 1 in " in said
        assert " tensors, " in said
        assert "goes on from the checkpoint before" in said


@pytest.mark.parametrize(
    ("variable", "told"),
    [(name, "2") for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")]
    + [("SLURM_STEP_NUM_TASKS", "8")],
)
@pytest.mark.parametrize("fails", [False, True])
def test_processes_that_have_not_joined_are_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, told: str, fails: bool
) -> None:
    """Where Accelerate starts no group, or does not know where its processes meet."""
    monkeypatch.setenv(variable, told)
    alone = Mock(num_processes=1, device=torch.device("cpu"))
    state = Mock(side_effect=ValueError("MASTER_ADDR") if fails else [alone])
    monkeypatch.setattr(processes_module, "PartialState", state)
    with pytest.raises(ValueError, match=rf"{variable} tells of {told} processes, but 1 joined.*"):
        processes_module.joined_processes.__wrapped__("cpu")
    monkeypatch.setenv(variable, "1")
    state.side_effect = [alone]
    assert not processes_module.joined_processes.__wrapped__("cpu").several


@pytest.mark.slow
@pytest.mark.parametrize("bound", [False, True])
def test_processes_of_any_launcher_share_the_cores_that_they_have(bound: bool) -> None:
    """Two as Open MPI starts them, which tell nothing of how many are here; bound, each has one."""
    cores = sorted(os.sched_getaffinity(0))
    if bound and len(cores) < 2:
        pytest.skip("one core alone")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{free.getsockname()[1]}"}
    code = (
        "import os, sys; os.sched_setaffinity(0, map(int, sys.argv[1:]));"
        "from pareco.processes import joined_processes; joined_processes('cpu');"
        "from pareco.config import Machine; from pareco.data.loading import decoding_workers;"
        "print(os.environ['LOCAL_WORLD_SIZE'], decoding_workers(Machine()))"
    )
    started = []
    for rank in (0, 1):
        environment = os.environ | meeting | {"OMP_NUM_THREADS": "1", "OMPI_COMM_WORLD_SIZE": "2"}
        environment["OMPI_COMM_WORLD_RANK"] = f"{rank}"
        own = [cores[rank]] if bound else cores
        command = [sys.executable, "-c", code, *map(str, own)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdout=pipe, env=environment, text=True))
    said = [process.communicate(timeout=600)[0].split() for process in started]
    assert said == [["1", "1"] if bound else ["2", f"{max(1, usable_cores() // 2)}"]] * 2


@pytest.mark.slow
def test_a_world_without_a_launcher_is_refused_by_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "replications", "run", "digits", "--scale", "smoke"]
    result = subprocess.run(
        [*command, "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"WORLD_SIZE": "2", "WANDB_MODE": "disabled"},
        check=False,
    )
    assert result.returncode == 2
    assert "WORLD_SIZE tells of 2 processes, but 1 joined: start them with" in result.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_smoke_replication_runs_on_two_processes_as_make_starts_it(tmp_path: Path) -> None:
    """On a machine without an accelerator: one run of both, not one of each."""
    make = ["make", "--dry-run", "--assume-old=.venv/.installed", "replicate-digits"]
    options = ["SCALE=smoke", "GPUS=2", "METHODS=us_net two_stage", "SEEDS=0", "SET=--device cpu"]
    plain = {"PATH": os.environ["PATH"]}
    shown = subprocess.run(
        [*make, *options], capture_output=True, text=True, check=True, cwd=ROOT, env=plain
    ).stdout
    launch = shlex.split(shown.splitlines()[-1])
    assert launch[0] == ".venv/bin/torchrun"
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *launch[1:], *folders],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        env=os.environ | {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert result.returncode == 0, result.stderr + result.stdout
    for method in ("us_net", "two_stage"):
        run = tmp_path / "runs/digits-smoke" / method / "seed0"
        (session,) = json.loads((run / "env.json").read_text())
        assert session["processes"] == 2
        assert len((run / "metrics.jsonl").read_text().splitlines()) == 20
        assert (run / "DONE").exists()
    fronts = (tmp_path / "results/digits-smoke/records/fronts.csv").read_text().splitlines()
    assert {line.split(",")[1] for line in fronts[1:]} == {"us_net", "two_stage"}
    assert result.stdout.count("Budget per run") == 1  # one process reports


def test_a_batch_that_processes_cannot_share_is_refused(two: Path) -> None:
    for rank in (0, 1):
        assert "training.batch_size 99" in (two / f"odd/refused{rank}").read_text()


def test_a_total_leaves_what_it_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of a measurement under way, which goes on from there once it is kept."""
    monkeypatch.setattr(dist, "all_reduce", lambda summed, group: summed.mul_(2))
    counts = torch.tensor([3.0, 4.0], dtype=torch.double)
    total = Processes(torch.device("cpu"), Share(0, 2)).total(counts)
    assert (counts.tolist(), total.tolist()) == ([3, 4], [6, 8])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "raise-main"])
def test_a_process_that_dies_ends_the_run(more: Path, tmp_path: Path, how: str) -> None:
    """With its traceback, where it has one."""
    said = ended(launched("torchrun", tmp_path, f"run=us_net/{how}"))
    assert ("SIGKILL" if how == "kill" else "RuntimeError: this process dies") in said
    assert "RuntimeError: this process dies" in (more / "died.txt").read_text()  # of rank 1


@pytest.mark.slow
def test_a_process_that_dies_costs_no_result_where_its_launcher_restarts_it(
    two: Path, tmp_path: Path
) -> None:
    """Bit for bit: both processes go on from the checkpoint after the fourth step."""
    result = launched("restarting", tmp_path, "us_net=us_net/die-once")
    assert result.returncode == 0, result.stderr + result.stdout
    assert "exitcode: -9" in result.stderr
    whole, restarted = two / "us_net", tmp_path / "us_net"
    assert notes(restarted)["widths"] == notes(whole)["widths"][4:]
    assert largest_difference(weights(whole), weights(restarted, 1)) == 0
    for name in ("front.csv", "metrics.jsonl"):
        assert (restarted / "run" / name).read_bytes() == (whole / "run" / name).read_bytes()
    assert len(json.loads((restarted / "run/env.json").read_text())) == 2


@pytest.mark.parametrize("positions", [(4, 4), (6,), ()])
def test_batch_norm_over_parts_is_that_of_the_joined_batch(positions: tuple[int, ...]) -> None:
    """Against torch's own batch norm on the whole batch; two equal halves stand for two parts."""
    generator = torch.Generator().manual_seed(0)
    images = 3 + 2 * torch.randn(8, 5, *positions, generator=generator)
    kind = nn.BatchNorm2d if len(positions) == 2 else nn.BatchNorm1d
    plain = kind(5)
    nn.init.normal_(plain.weight, 1, 0.3, generator)
    nn.init.normal_(plain.bias, 0, 0.3, generator)
    sliced = SlicedBatchNorm(kind(5))
    sliced.load_state_dict(plain.state_dict())
    sliced.setting.parts = lambda values: values[None]  # one part: the whole batch
    inputs = [images.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(each) for layer, each in zip((plain, sliced), inputs, strict=True)]
    for output in outputs:
        F.mse_loss(output.sin(), images).backward()
    # float32 sums in another order
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-6)
    for name, tracked in plain.named_buffers():  # means, variances, and how many batches
        torch.testing.assert_close(sliced.get_buffer(name), tracked, rtol=1e-5, atol=1e-6)


def test_parts_are_merged_without_cancellation() -> None:
    """Two unlike halves, far from 0, where a mean of squares in float32 would err by 6%."""
    images = 1000 + torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images[4:] += 0.5
    other = torch.stack(torch.var_mean(images[4:], (0, 2, 3), correction=0)[::-1])
    sliced = SlicedBatchNorm(nn.BatchNorm2d(1, momentum=1.0))
    sliced.setting.parts = lambda own: torch.stack([own, other])
    plain = nn.BatchNorm2d(1, momentum=1.0).double()
    expected = plain(images.double())[:4].float()
    torch.testing.assert_close(sliced(images[:4]), expected, rtol=0, atol=1e-3)
    assert sliced.running_var is not None
    torch.testing.assert_close(sliced.running_var.double(), plain.running_var, rtol=1e-3, atol=0)


def test_an_error_in_a_joint_measurement_is_the_one_that_is_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And it is not announced: the other processes may have ended with it already."""
    sent: list[str] = []
    monkeypatch.setattr(Processes, "_broadcast", lambda self, message: sent.append(message[0]))
    processes = Processes(torch.device("cpu"), Share(0, 2))
    measure = Mock(side_effect=MemoryError("no memory left"))
    with pytest.raises(MemoryError, match="no memory left"):
        processes.led(lambda: processes.together(measure, 1), measure)
    assert sent == ["request"]


def test_an_error_of_the_main_process_alone_reaches_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[tuple[str, object]] = []
    monkeypatch.setattr(Processes, "_broadcast", lambda self, message: sent.append(message))
    error = ValueError("undecided")
    with pytest.raises(ValueError, match="undecided"):
        Processes(torch.device("cpu"), Share(0, 2)).led(Mock(side_effect=error))
    assert sent == [("raised", error)]
    monkeypatch.setattr(Processes, "_broadcast", lambda self, message: sent[0])
    with pytest.raises(ValueError, match="undecided"):
        Processes(torch.device("cpu"), Share(1, 2)).led(Mock())


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 6), ("250000 100000", 3), ("50000 100000", 1)]
)
def test_cores_are_those_of_the_affinity_and_of_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    """As Linux tells a container of it (cgroup v2): microseconds of CPU in each period."""
    told, there, opened = "/sys/fs/cgroup/cpu.max", os.path.exists, open
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(os.path, "exists", lambda path: path == told or there(path))
    monkeypatch.setattr(
        builtins,
        "open",
        lambda path, *rest: io.StringIO(quota) if path == told else opened(path, *rest),
    )
    assert usable_cores() == cores


@pytest.mark.parametrize(
    ("visible", "count", "names"),
    [(None, 2, ["0", "1"]), ("4, 6", 2, ["4", "6"]), ("MIG-a,GPU-b", 2, ["MIG-a", "GPU-b"])],
)
def test_gpus_have_the_names_by_which_one_is_chosen(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int, names: list[str]
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_devices() == names


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_let_or_not_and_in_use_where_the_gpu_has_it(
    allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends, here = torch.backends, replace(TINY.training, cpu_threads=torch.get_num_threads())
    set_arithmetic(replace(here, tf32=not allowed))
    set_arithmetic(replace(here, tf32=allowed))
    assert (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32) == (allowed, allowed)
    assert (torch.get_float32_matmul_precision() == "high") is allowed
    for has_it in (True, False):
        monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda has_it=has_it: has_it)
        assert tf32_in_use(torch.device("cuda")) is (allowed and has_it)
        assert tf32_in_use(torch.device("cpu")) is False
