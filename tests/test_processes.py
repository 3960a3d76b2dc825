"""Two gloo processes on CPU: the same weights as one process, one history, no hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from pareco.processes import Processes, Share
from pareco.slimmable.layers import SlicedBatchNorm2d
from tests.two_processes import observed_run

LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    "accelerate": [
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"),
        *("--mixed_precision=no", "--dynamo_backend=no", "--num_cpu_threads_per_process=1"),
        "--main_process_port=0",
    ],
}


STEPS = 16  # 2 epochs of 800 images in batches of 100
# float32 sums in another order, over 16 steps: 9e-5 measured.
TOLERANCE = 5e-4


def launched(launcher: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "tests.two_processes", *arguments]
    environment = os.environ | {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=200, env=environment, check=False
    )


def observed(folder: Path, rank: int) -> tuple[dict[str, Tensor], list[list[str]]]:
    """Return the final weights and the widths of every step that one process noted."""
    weights = load_file(folder / f"rank{rank}.safetensors")
    return weights, json.loads((folder / f"rank{rank}.json").read_text())


def largest_difference(weights: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    assert weights.keys() == others.keys()
    return max(float((weights[name] - others[name]).abs().max()) for name in weights)


@pytest.mark.parametrize(
    ("launcher", "method"),
    [("torchrun", "us_net"), ("torchrun", "s_net"), ("accelerate", "random_widths")],
)
def test_two_processes_train_the_weights_of_one_with_the_joined_batch(
    tmp_path: Path, launcher: str, method: str
) -> None:
    result = launched(launcher, str(tmp_path / "two"), method)
    assert result.returncode == 0, result.stderr
    observed_run(tmp_path / "one", method, rank=0)
    weights, widths = observed(tmp_path / "one", 0)
    for rank in (0, 1):
        other_weights, other_widths = observed(tmp_path / "two", rank)
        assert other_widths == widths
        assert largest_difference(weights, other_weights) < TOLERANCE
    metrics = [
        [json.loads(line) for line in text.splitlines()]
        for text in ((tmp_path / run / "run/metrics.jsonl").read_text() for run in ("one", "two"))
    ]
    assert len(metrics[0]) == STEPS
    for one, two in zip(*metrics, strict=True):
        assert two == pytest.approx(one, rel=1e-3)


def test_batch_norm_of_each_process_alone_gives_other_weights(tmp_path: Path) -> None:
    """So that the tolerance above means something."""
    result = launched("torchrun", str(tmp_path / "two"), "us_net", "alone")
    assert result.returncode == 0, result.stderr
    observed_run(tmp_path / "one", "us_net", rank=0)
    weights, _ = observed(tmp_path / "one", 0)
    others, _ = observed(tmp_path / "two", 0)
    assert largest_difference(weights, others) > 10 * TOLERANCE


def test_processes_agree_bit_for_bit(tmp_path: Path) -> None:
    result = launched("torchrun", str(tmp_path), "pareco")
    assert result.returncode == 0, result.stderr
    (weights, widths), (others, other_widths) = (observed(tmp_path, rank) for rank in (0, 1))
    assert widths == other_widths
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    budget = json.loads((tmp_path / "run/result.json").read_text())["budget"]
    assert budget["gradient_steps"] == STEPS


@pytest.mark.parametrize("how", ["raise", "kill", "raise-main"])
def test_a_process_that_dies_ends_the_run_with_its_traceback(tmp_path: Path, how: str) -> None:
    started = time.monotonic()
    result = launched("torchrun", str(tmp_path), "us_net", how)
    assert time.monotonic() - started < 60
    assert result.returncode != 0
    shown = "SIGKILL" if how == "kill" else "RuntimeError: this process dies"
    assert shown in result.stderr + result.stdout


def test_a_run_of_two_processes_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    whole = launched("torchrun", str(tmp_path / "whole"), "pareco")
    assert whole.returncode == 0, whole.stderr
    stopped = launched("torchrun", str(tmp_path / "parts"), "pareco", "terminate")
    assert stopped.returncode != 0
    assert not (tmp_path / "parts/run/DONE").exists()
    rest = launched("torchrun", str(tmp_path / "parts"), "pareco")
    assert rest.returncode == 0, rest.stderr
    for name in ("front.csv", "metrics.jsonl"):
        assert (tmp_path / "parts/run" / name).read_text() == (
            tmp_path / "whole/run" / name
        ).read_text()
    weights, _ = observed(tmp_path / "whole", 0)
    others, _ = observed(tmp_path / "parts", 1)
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_batch_norm_over_parts_is_that_of_the_joined_batch() -> None:
    """Against torch's own batch norm on the whole batch; two equal halves stand for two parts."""
    generator = torch.Generator().manual_seed(0)
    images = 3 + 2 * torch.randn(8, 5, 4, 4, generator=generator)
    plain = nn.BatchNorm2d(5)
    nn.init.normal_(plain.weight, 1, 0.3, generator)
    nn.init.normal_(plain.bias, 0, 0.3, generator)
    sliced = SlicedBatchNorm2d(nn.BatchNorm2d(5))
    sliced.load_state_dict(plain.state_dict())
    sliced.parts = lambda values: values[None]  # one part: the whole batch
    inputs = [images.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(each) for layer, each in zip((plain, sliced), inputs, strict=True)]
    for output in outputs:
        F.mse_loss(output.sin(), images).backward()
    # float32 sums in another order
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(sliced.running_mean, plain.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sliced.running_var, plain.running_var, rtol=1e-5, atol=1e-6)
    assert sliced.num_batches_tracked == plain.num_batches_tracked == 1


def test_the_variance_counts_the_images_of_all_parts() -> None:
    """Two parts with the same images: the unbiased variance is over twice as many."""
    images = torch.randn(4, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    sliced = SlicedBatchNorm2d(nn.BatchNorm2d(1, momentum=1.0))
    sliced.parts = lambda values: torch.stack([values, values])
    sliced(images)
    expected = torch.cat([images, images]).var(unbiased=True)
    assert float(sliced.running_var) == pytest.approx(float(expected), rel=1e-5)  # type: ignore[arg-type]


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path: Path) -> None:
    result = launched("torchrun", str(tmp_path), "us_net", "odd")
    assert result.returncode != 0
    assert "batch_size" in result.stderr


def test_an_error_in_a_joint_measurement_is_the_one_that_is_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And it is not announced: the other processes may have ended with it already."""
    sent: list[str] = []
    monkeypatch.setattr(Processes, "_broadcast", lambda self, message: sent.append(message[0]))
    processes = Processes(torch.device("cpu"), Share(0, 2))

    def measure(request: int) -> int:
        raise MemoryError("no memory left")

    with pytest.raises(MemoryError, match="no memory left"):
        processes.led(lambda: processes.together(measure, 1), measure)
    assert sent == ["request"]


def test_an_error_of_the_main_process_alone_reaches_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[tuple[str, object]] = []
    monkeypatch.setattr(Processes, "_broadcast", lambda self, message: sent.append(message))
    error = ValueError("undecided")

    def decide() -> int:
        raise error

    with pytest.raises(ValueError, match="undecided"):
        Processes(torch.device("cpu"), Share(0, 2)).led(decide)
    assert sent == [("raised", error)]
    monkeypatch.setattr(Processes, "_broadcast", lambda self, message: sent[0])
    with pytest.raises(ValueError, match="undecided"):
        Processes(torch.device("cpu"), Share(1, 2)).led(decide)
