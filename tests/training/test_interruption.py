import errno
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pareco.training import interruption
from pareco.training.interruption import (
    Interrupted,
    RunError,
    check,
    explained,
    insisted,
    interruptible,
    requested,
)


@pytest.fixture(autouse=True)
def _handlers_come_back() -> Iterator[None]:
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(each) for each in signals]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background process
    yield
    assert signal.getsignal(signal.SIGTERM) is before[0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before[1])


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_only_asks(signum: int, status: int) -> None:
    def work() -> None:
        assert requested() is None
        check()
        send(signum)
        assert requested() == signum
        check()
        pytest.fail("it went on")

    with pytest.raises(Interrupted) as interrupted, interruptible():
        work()
    assert interrupted.value.signum == signum
    assert interrupted.value.exit_status == status
    assert signal.Signals(signum).name in str(interrupted.value)
    assert requested() is None


def test_a_signal_that_nobody_answers_is_not_lost() -> None:
    with pytest.raises(Interrupted), interruptible():
        send(signal.SIGTERM)
    with interruptible():
        check()  # each block begins anew


def test_an_error_after_a_signal_passes() -> None:
    def work() -> None:
        send(signal.SIGTERM)
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"), interruptible():
        work()


def test_a_second_interrupt_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        send(signal.SIGINT)
        send(signal.SIGINT)  # the same request: a process and its group are both signalled
        assert not insisted()
        monkeypatch.setattr(interruption, "_SECONDS_OF_ONE_REQUEST", 0.0)
        send(signal.SIGTERM)
        assert insisted()
        assert requested() == signal.SIGINT
        send(signal.SIGINT)
        pytest.fail("it went on")

    with pytest.raises(KeyboardInterrupt), interruptible():
        work()


def test_a_block_inside_another_is_a_part_of_it() -> None:
    def work() -> None:
        with interruptible():
            send(signal.SIGTERM)
        assert requested() == signal.SIGTERM
        with interruptible():
            check()
        pytest.fail("it went on")

    with pytest.raises(Interrupted), interruptible():
        work()


def test_in_another_thread_nothing_changes() -> None:
    handlers: list[object] = []

    def look() -> None:
        with interruptible():
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [before]


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible():
        send(signal.SIGINT)
        assert requested() is None
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_it_travels_between_processes() -> None:
    copy = pickle.loads(pickle.dumps(Interrupted(signal.SIGTERM)))
    assert copy.signum == signal.SIGTERM


RUN = Path("runs/tiny/us_net/seed0")


def os_error(number: int, name: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), name)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        *(
            (os_error(number), rf"^{RUN} could not be written: {os.strerror(number)}\..*make room")
            for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        ),
        *(
            (
                os_error(number, f"{RUN}/env.json"),
                rf"^{RUN} cannot be written: {os.strerror(number)} \({RUN}/env.json\)\..*--runs",
            )
            for number in (errno.EROFS, errno.EACCES, errno.EPERM)
        ),
        (os_error(errno.EROFS, str(RUN)), rf"^{RUN} cannot be written: Read-only .*--runs FOLDER"),
        # Only a file in the run's folder is called a part of it.
        (os_error(errno.EACCES, "/data/cat.png"), r"^/data/cat.png cannot be used: Permission den"),
        *(
            (error, rf"^memory ran out during {RUN} \(.*\)\..* is intact.*training.batch_size")
            for error in (
                MemoryError(),
                torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 ..."),
                os_error(errno.ENOMEM),
            )
        ),
    ],
)
def test_what_the_machine_lacks_is_said(error: Exception, message: str) -> None:
    with pytest.raises(RunError, match=message) as raised, explained(RUN):
        raise error
    assert raised.value.__cause__ is error


def test_an_allocation_that_really_fails() -> None:
    with pytest.raises(RunError, match="memory ran out"), explained(RUN):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RunError, match="memory ran out"), explained(RUN):
        bytearray(2**62)


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(errno.ENOENT, "No such file", "x"), RuntimeError("shapes"), ValueError("v")],
)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, explained(RUN):
        raise error
    assert raised.value is error
