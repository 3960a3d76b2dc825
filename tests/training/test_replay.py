"""Passes that are recorded and replayed: on the CPU by a tape, on a GPU as CUDA graphs."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pareco.config import Experiment
from pareco.ledger import Ledger
from pareco.methods import Method
from pareco.slimmable import SlimmableNet, make_slimmable
from pareco.training import RunError, execute_run, replay
from pareco.training.replay import EAGER_STEPS, Passes, Replays, check_replay, passes_of
from pareco.training.step import StepLosses, accumulate_gradients, sandwich_widths
from pareco.training.trainer import optimizer_of
from pareco.widths import Widths
from replications.catalogue import method_named
from tests.conftest import tiny_net
from tests.experiments import TINY
from tests.training.tape import Tape
from tests.training.test_outcomes import NEVER, RARELY, Fixed, Unwaiting, machine, same

CPU = torch.device("cpu")
STEPS = EAGER_STEPS + 3


@pytest.fixture(autouse=True)
def tape(monkeypatch: pytest.MonkeyPatch) -> Tape:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tape = Tape(CPU)
    monkeypatch.setattr(replay, "RECORDERS", {"cpu": lambda device: tape})
    return tape


def recorded(experiment: Experiment, **changes: Any) -> Experiment:
    training = replace(experiment.training, cuda_graphs=True, **changes)
    return replace(experiment, training=training)


def batch(step: int) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(step)
    images = torch.randn(6, 1, 8, 8, generator=drawn)
    return images, torch.randint(0, 10, (6,), generator=drawn)


def trained(
    net: SlimmableNet, passes: Passes, between: Sequence[Sequence[Widths]]
) -> list[StepLosses]:
    """Return the losses of steps whose widths between the ends are these."""
    optimizer, found = optimizer_of(net, TINY.training, fused=False), []
    for step, chosen in enumerate(between):
        widths = sandwich_widths(net, chosen)
        with passes.step():
            losses = accumulate_gradients(
                net, *batch(step), widths, label_smoothing=0.1, run=passes.run
            )
        found.append(losses)
        optimizer.step()
        passes.clear()
    return found


def test_replays_give_the_same_losses_and_weights(tape: Tape) -> None:
    """Widths come and go: those of the ends, and of what stays for long enough, are recorded."""
    nets = [tiny_net().train() for _ in range(2)]
    space = nets[0].space
    first, second = space.uniform(0.6), space.uniform(0.8)
    between = [*[[first, second]] * STEPS, *[[first]] * 2, *[[second]] * STEPS, [first], [second]]
    plain = trained(nets[0], Passes(nets[0]), between)
    replayed = trained(nets[1], Replays(nets[1], tape), between)
    for found, expected in zip(replayed, plain, strict=True):
        assert all(map(torch.equal, found, expected))
    ours, theirs = (net.state_dict() for net in nets)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # The ends, the first, and the second twice, as there were steps without it.
    assert tape.recorded == 5
    steps = len(between) - EAGER_STEPS
    assert tape.replayed == 2 * steps + (STEPS + 2 - EAGER_STEPS) + 2 * (STEPS - EAGER_STEPS)


def test_a_replay_reads_and_writes_where_the_recorded_pass_did(tape: Tape) -> None:
    net = tiny_net().train()
    passes = Replays(net, tape)
    ends = [net.space.largest, net.space.smallest]
    given: list[list[int]] = []
    gradients: list[list[int]] = []

    def noted(widths: Widths, work: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        def seen(*placed: Tensor) -> Any:
            given.append([each.data_ptr() for each in placed])
            return work(*placed)

        return passes.run(widths, seen, *inputs)

    for step in range(STEPS):
        with passes.step():
            accumulate_gradients(net, *batch(step), ends, label_smoothing=0.1, run=noted)
        found = [each.grad for each in net.parameters() if each.grad is not None]
        gradients.append([each.data_ptr() for each in found])
        before = [each.clone() for each in found]
        passes.clear()
        assert any(each.any() for each in before)
        assert not any(each.any() for each in found)
    # Python is not run again once both are recorded; every time the inputs lay in one place.
    assert len(given) == 2 * (EAGER_STEPS + 1)
    assert given[0::2] == [given[0]] * (EAGER_STEPS + 1)
    assert given[1::2] == [given[1]] * (EAGER_STEPS + 1)
    assert given[0][:2] == given[1][:2]  # the same images and labels for all networks
    assert gradients == [gradients[0]] * STEPS


def test_what_bypasses_the_inputs_is_stale_in_a_replay(tape: Tape) -> None:
    """The tape would not hide a step that reads what is at no fixed address."""
    net = tiny_net().train()
    passes = Replays(net, tape)
    found = []
    for step in range(STEPS):
        images = torch.full((1,), float(step))
        with passes.step():
            given, bypassed = passes.run(
                net.space.largest, lambda placed, by=images: (placed + 1, by + 1), images
            )
        found.append((given.item(), bypassed.item()))
    recorded_at = float(EAGER_STEPS + 1)
    assert [each for each, _ in found] == [step + 1.0 for step in range(STEPS)]
    assert [each for _, each in found[EAGER_STEPS:]] == [recorded_at] * (STEPS - EAGER_STEPS)


def test_outputs_stay_when_another_graph_writes_there(tape: Tape) -> None:
    net = tiny_net()
    passes, widths = Replays(net, tape), net.space.largest
    kept = []
    for step in range(STEPS):
        with passes.step():
            kept += passes.run(widths, lambda placed: (placed * 2,), torch.tensor([float(step)]))
    assert [each.item() for each in kept] == [2.0 * step for step in range(STEPS)]


def test_a_graph_is_let_go_of_with_its_widths(tape: Tape) -> None:
    net = tiny_net().train()
    passes, middle = Replays(net, tape), net.space.uniform(0.7)
    trained(net, passes, [[middle]] * STEPS)
    assert set(passes._before) == {net.space.largest, middle, net.space.smallest}
    assert all(each.replay for each in passes._before.values())
    trained(net, passes, [[]])
    assert set(passes._before) == {net.space.largest, net.space.smallest}


def test_weights_of_a_switch_that_a_step_lacks_rest(tape: Tape) -> None:
    """As without graphs, its momentum does not move them on."""
    nets = [tiny_net().train() for _ in range(2)]
    one, other = nets[0].space.uniform(0.6), nets[0].space.uniform(0.8)
    for net in nets:
        net.privatize_norm([one, other])
    between = [*[[one, other]] * STEPS, *[[one]] * 3, *[[one, other]] * STEPS]
    trained(nets[0], Passes(nets[0]), between)
    trained(nets[1], Replays(nets[1], tape), between)
    ours, theirs = (net.state_dict() for net in nets)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("kind", "experiment"),
    [
        (method_named("pareco"), RARELY),
        (Fixed, replace(NEVER, training=replace(NEVER.training, precision="bf16"))),
    ],
)
def test_a_run_comes_to_the_same_and_waits_for_nothing(
    tmp_path: Path, tape: Tape, kind: type[Method], experiment: Experiment
) -> None:
    """To the byte, the ledger of MACs too. (Searches may wait, so they are not watched.)"""
    execute_run(experiment, kind, 0, tmp_path / "plain", machine=machine(4))
    assert tape.recorded == 0
    with pytest.MonkeyPatch.context() as patch:
        if kind is Fixed:
            Unwaiting().watch(patch)
        execute_run(recorded(experiment), kind, 0, tmp_path / "graphs", machine=machine(4))
    same(tmp_path / "graphs", tmp_path / "plain")
    assert tape.recorded >= 4
    assert tape.replayed > 2 * tape.recorded
    plain, graphs = (
        json.loads((tmp_path / each / "result.json").read_text())["ledger"]
        for each in ("plain", "graphs")
    )
    for phase, spent in plain.items():
        for name in ("forward_macs", "backward_macs"):
            assert graphs[phase][name] == spent[name], phase
    assert json.loads((tmp_path / "graphs" / "config.json").read_text())["training.cuda_graphs"]


def test_a_replay_draws_for_dropout_what_a_pass_would(tape: Tape) -> None:
    found = []
    for kind in (Passes, Replays):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = (nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
            model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, 10))
        net = make_slimmable(model, torch.zeros(1, 1, 8, 8)).train()
        passes = Replays(net, tape) if kind is Replays else Passes(net)
        for step in range(STEPS):
            with torch.random.fork_rng(), passes.step():
                torch.manual_seed(step)
                losses = accumulate_gradients(
                    *(net, *batch(0), sandwich_widths(net, [])),
                    label_smoothing=0.0,
                    run=passes.run,
                )
            passes.clear()
            found.append(losses.learned.tolist())
    assert found[:STEPS] == found[STEPS:]
    assert len({largest for largest, _ in found}) == STEPS  # they did draw


def test_scaled_gradients_are_replayed_too(tape: Tape) -> None:
    """The scale, which grows, lies where graphs read it."""
    found = []
    for kind in (Passes, Replays):
        net = tiny_net().train()
        passes = Replays(net, tape) if kind is Replays else Passes(net)
        optimizer = optimizer_of(net, TINY.training, fused=False)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        for step in range(STEPS + 2):
            with passes.step():
                losses = accumulate_gradients(
                    *(net, *batch(step), sandwich_widths(net, [])),
                    label_smoothing=0.1,
                    backward=lambda loss, scaler=scaler: scaler.scale(loss).backward(),
                    run=passes.run,
                )
            scaler.step(optimizer)
            scaler.update()
            passes.clear()
            found.append((losses.learned.tolist(), scaler.get_scale()))
    assert found[: STEPS + 2] == found[STEPS + 2 :]
    assert len({scale for _, scale in found}) > 2


def test_a_pass_that_cannot_be_recorded_is_one_line(
    tmp_path: Path, tape: Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(work: Any) -> Any:
        try:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error")

    monkeypatch.setattr(tape, "record", record)
    with pytest.raises(RunError, match=r"^training\.cuda_graphs: .*not permitted") as refusal:
        execute_run(recorded(NEVER), Fixed, 0, tmp_path / "run")
    assert len(str(refusal.value).splitlines()) == 1
    monkeypatch.setattr(tape, "record", lambda work: (_ for _ in ()).throw(MemoryError("no more")))
    with pytest.raises(RunError, match="memory ran out"):
        execute_run(recorded(NEVER), Fixed, 0, tmp_path / "other")


def test_where_there_are_no_graphs_they_are_refused_by_their_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recorded(TINY).training
    check_replay(config, CPU, 1)
    with pytest.raises(ValueError, match=r"^training\.cuda_graphs with 2 processes needs training"):
        check_replay(config, CPU, 2)
    check_replay(replace(config, sync_batch_norm=False), CPU, 2)
    monkeypatch.undo()
    check_replay(TINY.training, CPU, 2)
    with pytest.raises(ValueError, match=r"^training\.cuda_graphs needs .* GPU, and this is cpu"):
        execute_run(recorded(TINY), Fixed, 0, tmp_path, machine=machine(1))
    assert list(replay.RECORDERS) == ["cuda"]


def test_cuda_graphs_are_recorded_on_one_stream_in_one_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As far as a machine without a GPU can tell: the calls are such as torch takes."""
    told: list[Any] = []
    signature = inspect.signature(torch.cuda.graph)

    class Stream:
        def __init__(self, device: Any = CPU) -> None:
            self.device = device

        def wait_stream(self, other: Any) -> None:
            told.append((self, "waits for", other))

    class Graph:
        def replay(self) -> None:
            told.append("replay")

    @contextmanager
    def graph(*arguments: Any, **options: Any) -> Any:
        told.append(signature.bind(*arguments, **options).arguments)
        yield

    current, pool = Stream(), (0, 1)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: pool)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(told.append(stream)))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    graphs = replay.CudaGraphs(CPU)
    own, output = graphs._stream, torch.ones(1)
    with graphs.step():
        again, outputs = graphs.record(lambda: (output,))
    again()
    used = {"pool": pool, "stream": own, "capture_error_mode": "thread_local"}
    waits = [(own, "waits for", current), own], [(current, "waits for", own), "replay"]
    assert told[:2] == waits[0]
    assert {name: told[2][name] for name in used} == used
    assert told[3:] == waits[1]
    assert outputs == (output,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA or AMD GPU")
def test_on_a_gpu_graphs_give_the_losses_of_eager_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = []
    for graphs in (False, True):
        net = tiny_net().train().cuda()
        config = replace(TINY.training, cuda_graphs=graphs, sync_batch_norm=False)
        passes = passes_of(net, config, torch.device("cuda"))
        optimizer = optimizer_of(net, config, fused=False)
        for step in range(4 * STEPS):
            images, labels = (each.cuda() for each in batch(step))
            widths = sandwich_widths(net, [net.space.uniform(0.6 if step < 9 else 0.8)])
            with passes.step():
                losses = accumulate_gradients(
                    net, images, labels, widths, label_smoothing=0.1, run=passes.run
                )
            optimizer.step()
            passes.clear()
            found.append(losses.learned)
    # Kernels may add in another order (atomics), and 24 steps carry that on.
    torch.testing.assert_close(
        torch.stack(found[4 * STEPS :]), torch.stack(found[: 4 * STEPS]), rtol=1e-3, atol=1e-3
    )


def test_what_is_replayed_is_booked() -> None:
    net, ledger = tiny_net(), Ledger()
    net.book_replay(3)  # in no ledger
    net.book_in(ledger)
    with ledger.during("training"), net.at(net.space.smallest):
        net.book_replay(3)
    ledger.settle(lambda own: [own])
    macs = 3 * net.cost.macs_at(net.space.smallest)
    assert (ledger.total().forward_macs, ledger.total().backward_macs) == (macs, 2 * macs)
