"""What steps came to is read later, and nothing else is: no number tells when."""

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pareco.config import Experiment, Machine
from pareco.data.images import Images, MemoryStore
from pareco.data.loading import TrainingLoader
from pareco.data.transforms import Preparation
from pareco.methods import Method
from pareco.processes import Processes, Share
from pareco.training import NonFiniteLoss, StepReport, check_runnable, execute_run
from pareco.training import trainer as trainer_module
from pareco.training.interruption import Interrupted
from pareco.training.outcomes import Outcome, Outcomes
from pareco.training.step import StepLosses
from pareco.training.trainer import Trainer, optimizer_of
from pareco.widths import Widths
from replications.catalogue import method_named
from tests.conftest import tiny_net
from tests.experiments import TINY

STEPS = 14
RARELY = replace(TINY, training=replace(TINY.training, ask_every_steps=5))
NEVER = replace(TINY, training=replace(TINY.training, ask_every_steps=100))
HEARING = replace(
    TINY,
    training=replace(TINY.training, ask_every_steps=3),
    search=replace(
        TINY.search, losses_from="training", trains="front", visits_per_ask=3, half_life=0.2
    ),
)
UNSMOOTHED = replace(RARELY, training=replace(RARELY.training, label_smoothing=0.0))


@pytest.fixture(autouse=True)
def _without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def machine(every: int, minutes: float = 60) -> Machine:
    return Machine(device="cpu", read_every_steps=every, checkpoint_minutes=minutes)


def same(path: Path, other: Path) -> None:
    names = ("metrics.jsonl", "front.csv", "visits.csv", "weights/0.safetensors")
    for name in names:
        there = [(each / name).read_bytes() for each in (path, other) if (each / name).exists()]
        assert len(there) != 1, name
        assert there[:1] == there[1:], name
    assert len((path / "metrics.jsonl").read_text().splitlines()) == STEPS


class Fixed(Method):
    """Draws nothing."""

    name = "fixed"

    def widths_for_step(self, step: int) -> Sequence[Widths]:
        return [self.task.space.uniform(0.6), self.task.space.uniform(0.8)]

    def candidates(self) -> Sequence[Widths]:
        return ()


class Listener(Fixed):
    """Keeps what it hears, and what it had heard when it was asked."""

    name = "listener"
    last: "Listener"
    ended: ClassVar[list[int]] = []

    def __init__(self, task: Any) -> None:
        super().__init__(task)
        self.heard: list[Any] = []
        self.known: list[int] = []
        Listener.last = self

    def hear(self, step: int, widths: Sequence[Widths], losses: Sequence[float]) -> None:
        self.heard.append([step, list(map(list, widths)), list(losses)])

    def widths_for_step(self, step: int) -> Sequence[Widths]:
        if step % self.task.ask_every_steps == 0:
            self.known.append(len(self.heard))
        return super().widths_for_step(step)

    def state(self) -> dict[str, Any]:
        return {"heard": self.heard, "known": self.known}

    def load_state(self, state: dict[str, Any]) -> None:
        self.heard, self.known = list(state["heard"]), list(state["known"])

    def candidates(self) -> Sequence[Widths]:
        Listener.ended.append(len(self.heard))
        return ()


CASES = [("pareco", RARELY), ("pareco_exact", HEARING), ("us_net", RARELY)]


@pytest.mark.parametrize(
    ("method", "experiment"),
    [CASES[1], *(pytest.param(*each, marks=pytest.mark.slow) for each in (CASES[0], CASES[2]))],
)
def test_when_losses_are_read_changes_no_byte(
    tmp_path: Path, method: str, experiment: Experiment
) -> None:
    kind = method_named(method)
    execute_run(experiment, kind, 0, tmp_path / "1", machine=machine(1))
    execute_run(experiment, kind, 0, tmp_path / "7", machine=machine(7))
    same(tmp_path / "7", tmp_path / "1")
    for end in (3, 8):  # steps; the signal comes while they are told of
        with pytest.raises(Interrupted):
            execute_run(experiment, kind, 0, tmp_path / "parts", ended_after(end), machine(7))
    execute_run(experiment, kind, 0, tmp_path / "parts", machine=machine(4))
    same(tmp_path / "parts", tmp_path / "1")


def ended_after(step: int) -> Callable[[StepReport], None]:
    def on_step(report: StepReport) -> None:
        if report.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_step


def test_steps_are_told_of_together_and_before_the_method_is_asked(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    done: list[None] = []

    class Watched(Fixed):
        name = "watched"

        def widths_for_step(self, step: int) -> Sequence[Widths]:
            done.append(None)
            return super().widths_for_step(step)

    for experiment, reads in ((RARELY, [4, 5, 9, 10, 14]), (NEVER, [4, 8, 12, 14])):
        told.clear()
        done.clear()
        path = tmp_path / str(len(reads))
        execute_run(
            experiment, Watched, 0, path, lambda r: told.append((r.step, len(done))), machine(4)
        )
        assert [step for step, _ in told] == [*range(1, STEPS + 1)]
        assert sorted({at for _, at in told}) == reads


@pytest.mark.parametrize("every", [1, 7])
def test_a_loss_that_is_not_finite_is_told_with_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """The first one, and nothing is saved with it or after it."""
    original, calls = trainer_module.accumulate_gradients, []

    def fails(net: Any, *arguments: Any, **options: Any) -> StepLosses:
        calls.append(net.space.smallest)
        losses = original(net, *arguments, **options)
        if len(calls) in (5, 6):
            losses.learned[-1] = torch.inf
        return losses

    monkeypatch.setattr(trainer_module, "accumulate_gradients", fails)
    with pytest.raises(NonFiniteLoss, match="at step 4, at the widths ") as raised:
        execute_run(NEVER, method_named("us_net"), 0, tmp_path, machine=machine(every))
    assert len(calls) == (5 if every == 1 else 7)
    assert str(calls[0]) in str(raised.value)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    assert not list(tmp_path.glob("checkpoints/*.safetensors"))


def test_no_checkpoint_holds_steps_that_nobody_has_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    state = Trainer.state

    def noted(self: Trainer) -> Any:
        held.append(len(self.outcomes))
        return state(self)

    monkeypatch.setattr(Trainer, "state", noted)
    execute_run(NEVER, Fixed, 0, tmp_path, machine=machine(7, minutes=0))
    assert len(held) > STEPS  # one process saves when it is due, and reads before
    assert set(held) == {0}


@pytest.mark.parametrize("every", [1, 7])
def test_a_method_hears_every_step_once_before_it_is_asked(tmp_path: Path, every: int) -> None:
    """Without smoothing, the largest network learns from the loss that it is told by."""
    for end in (2, 8, 12):
        with pytest.raises(Interrupted):
            execute_run(UNSMOOTHED, Listener, 0, tmp_path, ended_after(end), machine(every))
    execute_run(UNSMOOTHED, Listener, 0, tmp_path, machine=machine(every))
    listener = Listener.last
    assert listener.known == [0, 5, 10]
    assert Listener.ended[-1] == STEPS
    assert [step for step, _, _ in listener.heard] == [*range(STEPS)]
    space = tiny_net().space
    widths = [space.largest, space.uniform(0.6), space.uniform(0.8), space.smallest]
    assert {str(each) for _, each, _ in listener.heard} == {str([list(each) for each in widths])}
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    largest = [each["loss_largest"] for each in lines]
    assert [losses[0] for _, _, losses in listener.heard] == largest


def test_a_plan_plays_a_method_that_hears() -> None:
    Listener.ended.clear()
    check_runnable(RARELY, Listener, machine(1))
    assert Listener.ended == [STEPS]


def test_losses_of_several_processes_are_averaged_in_one_reduction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[Tensor] = []

    def total(self: Processes, values: Tensor) -> Tensor:  # the other one has half of these
        sent.append(values)
        return values.double() * 1.5

    monkeypatch.setattr(Processes, "total", total)
    known: Any = {"steps": 9, "learning_rate": 0.1, "forward_macs": 1, "backward_macs": 2}
    for wanted in (True, False):
        sent.clear()
        outcomes = Outcomes(Processes(torch.device("cpu"), Share(1, 2)), label_losses=wanted)
        assert outcomes.read() == []
        for step, losses in ((1, [4.0, 8.0]), (2, [2.0, 4.0, torch.inf])):
            widths = [Widths((each,)) for each in range(1, len(losses) + 1)]
            learned = torch.tensor(losses)
            kept = Outcome(step=step, widths=widths, **known)
            outcomes.add(kept, StepLosses(learned, learned + 1))
        assert len(outcomes) == 2
        first, second = outcomes.read()
        assert len(outcomes) == 0
        assert [len(each) for each in sent] == [10 if wanted else 5]
        assert first.learned == [3.0, 6.0]
        assert first.on_labels == ([3.75, 6.75] if wanted else [])
        first.check()
        report = first.report(50.0)
        assert (report.step, report.loss_largest, report.loss_smallest) == (1, 3.0, 6.0)
        assert (report.forward_macs, report.backward_macs) == (1, 2)
        with pytest.raises(NonFiniteLoss, match=r"at step 1, at the widths 3\. "):
            second.check()


def test_a_fused_optimizer_takes_the_same_steps_and_may_leave_out_the_first() -> None:
    """Scaled gradients that overflow leave out a step: the first one often."""
    found = []
    for fused in (False, True):
        net = tiny_net()
        optimizer = optimizer_of(net, TINY.training, fused=fused)
        scaler = torch.amp.GradScaler("cpu")
        generator = torch.Generator().manual_seed(0)
        for step in range(4):
            images = torch.randn(6, 1, 8, 8, generator=generator)
            loss = F.cross_entropy(net(images), torch.arange(6))
            scaler.scale(loss * (torch.inf if step == 0 else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        found.append([each.detach().clone() for each in net.parameters()])
    # A kernel of its own: float32 sums in another order.
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


_aten: Any = torch.ops.aten
_WAITING = {
    *(_aten._local_scalar_dense, _aten.item, _aten.is_nonzero, _aten.nonzero, _aten.equal),
    *(_aten.masked_select, _aten._unique2, _aten.bincount, _aten.allclose),
}
_READING = ("item", "tolist", "cpu", "numpy", "nonzero", "__array__")
_NUMBERS = ("__bool__", "__float__", "__int__", "__index__")


class Unwaiting(TorchDispatchMode):
    """Raises where a tensor's value would be waited for, while it is `armed`."""

    def __init__(self) -> None:
        super().__init__()
        self.armed, self.reads = False, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        masked = func is _aten.index.Tensor and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        blocks = False
        if func is _aten._to_copy.default and kwargs and not kwargs.get("non_blocking"):
            blocks = kwargs.get("device", args[0].device) not in (None, args[0].device)
        if self.armed and (masked or blocks or func.overloadpacket in _WAITING):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))

    @contextmanager
    def arm(self, armed: bool) -> Iterator[None]:
        before, self.armed = self.armed, armed
        try:
            yield
        finally:
            self.armed = before

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Let all steps of training run under it, armed but where they are read."""
        for name in (*_READING, *_NUMBERS):
            original = getattr(torch.Tensor, name)

            def guarded(*args: Any, _name: str = name, _original: Any = original, **kw: Any) -> Any:
                if self.armed:
                    raise AssertionError(f"{_name} waits for the device")
                return _original(*args, **kw)

            patch.setattr(torch.Tensor, name, guarded)
        steps, read = Trainer._steps, Trainer._read

        def watched(trainer: Trainer) -> None:
            with self, self.arm(True):
                steps(trainer)

        def reading(trainer: Trainer, wishes: Any) -> Any:
            self.reads += 1
            with self.arm(False):
                return read(trainer, wishes)

        patch.setattr(Trainer, "_steps", watched)
        patch.setattr(Trainer, "_read", reading)


def test_no_step_waits_for_its_device(tmp_path: Path) -> None:
    """On the CPU, which hides it: so what would read a value raises, but for every fourth step."""
    mode, training = Unwaiting(), replace(NEVER.training, precision="bf16")
    experiment: Experiment = replace(NEVER, training=training, data=replace(NEVER.data, flip=True))
    with pytest.MonkeyPatch.context() as patch:
        mode.watch(patch)
        execute_run(experiment, Fixed, 0, tmp_path, machine=machine(4))
    assert mode.reads == 4


def test_batches_go_to_a_device_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another device stands for an accelerator; what is sent there is pinned before."""
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda values: pinned.append(values) or values)
    own = replace(TINY.data, name="digits_rgb", mean=(73.0,) * 3, std=(90.0,) * 3)
    preparation = Preparation(replace(own, flip=True, lighting=0.1))
    pixels = torch.zeros(12, 3, 8, 8, dtype=torch.uint8, device="meta")
    store = MemoryStore(pixels, torch.arange(12), ("one",))
    images = Images(store, torch.arange(12), preparation)
    batches = TrainingLoader(images=images, batch_size=4, seed=0).epoch(0)
    next(batches)  # what is the same for all of them is sent with the first
    mode, before = Unwaiting(), len(pinned)
    mode.watch(monkeypatch)
    with mode, mode.arm(True):
        rest = list(batches)
    assert [(each.device.type, labels.device.type) for each, labels in rest] == [("meta",) * 2] * 2
    assert before == 5  # indices, labels, mirrors, corners, strengths
    assert len(pinned) == 3 * before


@pytest.mark.parametrize(
    "read",
    [
        lambda losses: losses[0].item(),
        lambda losses: losses.tolist(),
        lambda losses: bool(losses.isfinite().all()),
        lambda losses: f"{losses[-1]:.3f}",
        lambda losses: losses[losses > 0],
        lambda losses: losses.to("meta"),
    ],
)
def test_what_would_wait_is_found(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[Tensor], Any]
) -> None:
    mode, losses = Unwaiting(), torch.tensor([1.0, 2.0])
    mode.watch(monkeypatch)
    with mode:
        read(losses)
        with mode.arm(True), pytest.raises(AssertionError, match="waits for the device"):
            read(losses)
