import json
import logging
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from pareco.config import Experiment
from pareco.data import load_data
from pareco.processes import Processes, Share
from pareco.training import RunError, RunFolder
from pareco.training.environment import commit_of, environment
from pareco.training.folder import (
    FORMAT,
    DamagedCheckpoint,
    RunState,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from tests.experiments import TINY

ALONE = Processes(torch.device("cpu"))
ROW = {"experiment": "tiny", "widths": "1-2", "macs": 3}
TENSORS = {
    "a": torch.arange(12.0).reshape(3, 4).t(),
    "count": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "flags": torch.tensor([True, False]),
}
STATE = {"losses": [0.1, 1 / 3, 1e-300], "widths": [[1, 2]], "none": None}


def folder(path: Path, experiment: Experiment = TINY) -> RunFolder:
    return RunFolder(path=path, experiment=experiment, method="us_net", seed=0)


@pytest.fixture
def begun(tmp_path: Path) -> RunFolder:
    """Return the folder of a run with two checkpoints: at its steps 7 and 9."""
    run = folder(tmp_path / "run")
    with run.claimed(load_data(TINY.data), ALONE):
        for step in (7, 9):
            run.save(RunState(rows=[ROW]), {"a": torch.full((3,), float(step))}, {"step": step})
    return run


def changed(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def name_of(step: int) -> str:
    return f"{step:012}.safetensors"


def test_it_loads_what_it_saved(begun: RunFolder) -> None:
    assert folder(begun.path / "absent").load() == (RunState(), {}, None)
    state, tensors, trainer = begun.load()
    assert state == RunState(rows=[ROW])
    assert tensors["a"].tolist() == [9.0, 9.0, 9.0]
    assert trainer == {"step": 9}


def test_checkpoints_are_named_for_the_steps_of_all_sets_of_weights(begun: RunFolder) -> None:
    begun.save(RunState(gradient_steps=14, trained=1), {}, None)
    begun.save(RunState(gradient_steps=14, trained=1), {}, {"step": 3})
    assert names(begun.path / "checkpoints") == [name_of(14), name_of(17)]
    (begun.path / "checkpoints" / name_of(17)).unlink()
    assert begun.load() == (RunState(gradient_steps=14, trained=1), {}, None)


def test_a_checkpoint_of_another_configuration_is_refused(begun: RunFolder) -> None:
    """As when a checkpoint is copied there: `config.json` agrees, the checkpoint does not."""
    training = replace(TINY.training, epochs=3)
    other = folder(begun.path, replace(TINY, training=training))
    other.save(RunState(), {}, {"step": 11})
    assert not begun.differences()
    with pytest.raises(RunError, match=r"training.epochs: 3 there, 2 now.*--name NAME"):
        begun.load()
    more = folder(begun.path, replace(TINY, seeds=(0, 1), methods=("us_net",), training=training))
    assert more.load()[2] == {"step": 11}  # the sweep may grow


def test_a_claim_removes_what_killed_writers_left(begun: RunFolder) -> None:
    leftovers = [
        begun.path / ".config.json.123.tmp",
        begun.path / "checkpoints" / f".{name_of(11)}.123.tmp",
    ]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    with begun.claimed(load_data(TINY.data), ALONE):
        assert not any(leftover.exists() for leftover in leftovers)
        assert (begun.path / ".lock").exists()
        assert begun.load()[2] == {"step": 9}


def test_one_claim_at_a_time(begun: RunFolder) -> None:
    data = load_data(TINY.data)
    with (
        begun.claimed(data, ALONE),
        pytest.raises(RunError, match="in use by another process"),
        folder(begun.path).claimed(data, ALONE),
    ):
        pytest.fail("claimed twice")
    with begun.claimed(data, ALONE):
        pass


def test_a_claim_may_wait_for_one_that_ends(begun: RunFolder) -> None:
    """As of a machine that is lost, whose lock the file system gives up in the end."""
    data, held = load_data(TINY.data), FileLock(begun.path / ".lock", thread_local=False)
    held.acquire()
    timer = threading.Timer(0.2, held.release)
    timer.start()
    with folder(begun.path).claimed(data, ALONE, seconds=600):
        assert not held.is_locked
    timer.join()


def test_a_claim_ends_with_its_block_though_its_error_is_kept(begun: RunFolder) -> None:
    """So that the same process may try again; the lock's file stays, and means nothing."""
    data = load_data(TINY.data)
    with pytest.raises(MemoryError) as kept, begun.claimed(data, ALONE):
        raise MemoryError
    with begun.claimed(data, ALONE):
        assert kept.value.__traceback__ is not None
    assert (begun.path / ".lock").exists()


def stored(begun: RunFolder, **changes: object) -> None:
    """Change `config.json`; None takes a field away."""
    file = begun.path / "config.json"
    content = json.loads(file.read_text()) | changes
    content = {key: each for key, each in content.items() if each is not None}
    file.write_text(json.dumps(content))


def test_a_field_that_a_run_lacks_has_its_default(begun: RunFolder) -> None:
    """As in a run that was begun, or finished, before it was a field; in its checkpoint too."""
    lacking = ("training.sync_batch_norm", "search.beta", "cost", "data.flip", "data.mean")
    stored(begun, **dict.fromkeys(lacking[:-1]))
    assert begun.differences() == []
    assert not begun.finished()
    with begun.claimed(load_data(TINY.data), ALONE):
        assert begun.load()[2] == {"step": 9}
    configuration = json.loads((begun.path / "config.json").read_text())
    assert begun.differences(configuration) == []
    stored(begun, **dict.fromkeys(lacking))  # TINY's mean is not the default
    assert begun.differences() == ["data.mean: [123.675, 116.28, 103.53] there, [73.0] now"]
    stored(begun, **{"data.mean": [73.0], "training.epochs": None})  # which has no default
    assert begun.differences() == ["training.epochs: absent there, 2 now"]


def test_what_unset_fields_meant_is_compared_where_both_say_it(tmp_path: Path) -> None:
    """A run that a method began with other values of its own does not go on with these."""
    plain, own = (
        RunFolder(path=tmp_path, experiment=TINY, method="us_net", seed=0, own_search=each)
        for each in (None, {"solver": "exact", "visits_per_ask": 4})
    )
    data = load_data(TINY.data)
    with own.claimed(data, ALONE):
        pass
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["search.solver"] is None
    assert stored["unset.search.solver"] == "exact"
    assert stored["unset.search.trains"] == "newest"
    assert "unset.search.raw_samples" not in stored  # which TINY sets
    assert plain.differences() == own.differences() == []
    other = replace(own, own_search={"solver": "exact", "visits_per_ask": 3})
    assert other.differences() == ["unset.search.visits_per_ask: 4 there, 3 now"]
    with pytest.raises(RunError, match=r"unset\.search\.visits_per_ask"):
        other.finished()


def test_a_field_of_a_later_version_is_refused_by_name(begun: RunFolder) -> None:
    stored(begun, **{"training.mixup": 0.2})
    with pytest.raises(RunError, match=r"training.mixup: 0.2 there, unknown to this version\)"):
        begun.finished()


def test_the_number_of_processes_counts_where_each_has_batch_norm_of_its_own(
    tmp_path: Path,
) -> None:
    data, two = load_data(TINY.data), Processes(torch.device("cpu"), Share(0, 2))
    apart = replace(TINY, training=replace(TINY.training, sync_batch_norm=False))
    with folder(tmp_path / "joint").claimed(data, two):
        pass
    with folder(tmp_path / "joint").claimed(data, ALONE):
        pass
    with folder(tmp_path / "apart", apart).claimed(data, two):
        pass
    with (
        pytest.raises(RunError, match=r"begun by 2 processes, not 1, .*sync_batch_norm"),
        folder(tmp_path / "apart", apart).claimed(data, ALONE),
    ):
        pytest.fail("claimed by another number of processes")
    with folder(tmp_path / "apart", apart).claimed(data, two):
        pass


def test_that_the_code_of_a_method_has_changed_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once it has, at every session; a run of a version that kept none is no concern."""
    data = load_data(TINY.data)

    def session(code: str) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="pareco.training"):
            run = replace(folder(tmp_path), method_code=code)
            with run.claimed(data, ALONE):
                pass
        return [record.getMessage() for record in caplog.records]

    said = [session(code) for code in ("a", "a", "b", "a")]
    assert said == [[], [], [f"the code of us_net is not that which began {tmp_path}"], []]
    sessions = json.loads((tmp_path / "env.json").read_text())
    assert [each.pop("method_code") for each in sessions] == ["a", "a", "b", "a"]
    (tmp_path / "env.json").write_text(json.dumps(sessions))
    assert session("b") == []


def test_that_the_code_of_ones_own_method_has_changed_is_refused(tmp_path: Path) -> None:
    """In a run that a version began which had no such field in its configuration, too."""
    data = load_data(TINY.data)
    first, other = (replace(folder(tmp_path), method_code=each) for each in ("a", "b"))
    with first.claimed(data, ALONE):
        pass
    own = replace(other, own_method=True)
    for begin in (
        lambda: own.claimed(data, ALONE).__enter__(),
        lambda: own.check_begun(data.fingerprint, 1),
    ):
        with pytest.raises(RunError, match="begun by other code of us_net: give the"):
            begin()
    replace(first, own_method=True).check_begun(data.fingerprint, 1)
    with pytest.raises(RunError, match="begun on other data"):
        first.check_begun("other", 1)


def test_changed_splits_are_refused(begun: RunFolder) -> None:
    """The fingerprint covers the indices: another split would train on test images."""
    data = load_data(TINY.data)
    other = load_data(replace(TINY.data, split_seed=1))
    assert data.fingerprint != other.fingerprint
    before = (begun.path / "splits.json").read_text()
    with pytest.raises(RunError, match="begun on other data"), begun.claimed(other, ALONE):
        pytest.fail("claimed with other data")
    assert (begun.path / "splits.json").read_text() == before


@pytest.mark.parametrize("name", ["config.json", "env.json"])
def test_a_damaged_file_is_named(begun: RunFolder, name: str) -> None:
    changed(begun.path / name, lambda content: content[:-20])
    with (
        pytest.raises(RunError, match=f"{name} .*start"),
        begun.claimed(load_data(TINY.data), ALONE),
    ):
        pytest.fail("claimed with a damaged file")


def saved(folder: Path, tensors: dict[str, torch.Tensor], state: dict[str, object]) -> Path:
    save_checkpoint(folder, 1, tensors, state)
    return folder / name_of(1)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    loaded, state = load_checkpoint(saved(tmp_path, TENSORS, STATE))
    assert state == STATE
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name
    assert load_checkpoint(saved(tmp_path, {}, {"step": 1})) == ({}, {"step": 1})
    assert names(tmp_path) == [name_of(1)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_tensors_of_an_accelerator_come_back_on_the_cpu(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": torch.ones(3, device="cuda")}, {})
    assert load_checkpoint(path)[0]["a"].device.type == "cpu"


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for step in (3, 9, 10, 11):
        save_checkpoint(tmp_path, step, {}, {"step": step})
    assert names(tmp_path) == [name_of(10), name_of(11)]
    save_checkpoint(tmp_path, 11, {}, {"step": "11 again"})
    assert names(tmp_path) == [name_of(10), name_of(11)]
    assert newest_checkpoint(tmp_path) == ({}, {"step": "11 again"})


def test_any_flipped_bit_and_any_cut_are_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": torch.arange(6.0), "count": torch.tensor(7)}, {"step": 1})
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytes([whole[place] ^ 1 << place % 8])
        path.write_bytes(whole[:place] + flipped + whole[place + 1 :])
        of_the_version = whole[:place].endswith(FORMAT[:-1].encode())
        with pytest.raises(RunError if of_the_version else DamagedCheckpoint):
            load_checkpoint(path)
        path.write_bytes(whole[:place])
        with pytest.raises(DamagedCheckpoint):
            load_checkpoint(path)


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (3, 9):
        save_checkpoint(tmp_path, step, TENSORS, {"step": step})
    changed(tmp_path / name_of(9), lambda content: content[:-1])
    with caplog.at_level(logging.WARNING, logger="pareco.training"):
        newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest[1] == {"step": 3}
    (record,) = caplog.records
    assert record.name == "pareco.training"
    assert f"{name_of(9)} is damaged (" in record.getMessage()
    save_checkpoint(tmp_path, 5, {}, {"step": 5})  # training goes on from 3: nothing is behind 5
    assert names(tmp_path) == [name_of(3), name_of(5)]


def test_another_format_is_refused_not_skipped(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, {}, {"step": 3})
    metadata = {"format": "pareco-checkpoint-1", "state": "{}"}
    save_file({"a": torch.ones(1)}, tmp_path / name_of(9), metadata)
    with pytest.raises(RunError, match=f"format pareco-checkpoint-1, .* reads {FORMAT}") as refusal:
        newest_checkpoint(tmp_path)
    assert not isinstance(refusal.value, DamagedCheckpoint)


def test_a_file_that_is_whole_but_not_what_was_written_is_damaged(tmp_path: Path) -> None:
    """Neither a foreign one, nor one whose tensors have another shape than the checksum says."""
    save_file({"a": torch.ones(1)}, tmp_path / "c")
    with pytest.raises(DamagedCheckpoint):
        load_checkpoint(tmp_path / "c")
    path = saved(tmp_path, {"a": torch.ones(4)}, {"step": 1})
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    save_file({"a": load_file(path)["a"].view(2, 2)}, path, header["__metadata__"])
    with pytest.raises(DamagedCheckpoint, match="checksum"):
        load_checkpoint(path)


def test_damaged_images_are_kept_and_an_earlier_versions_count_is_no_obstacle(
    begun: RunFolder,
) -> None:
    """That version wrote a number in place of the images."""
    begun.save(RunState(damaged={"3": "it is cut"}), {}, {"step": 11})
    assert begun.load()[0].damaged == {"3": "it is cut"}
    tensors, state = newest_checkpoint(begun.path / "checkpoints") or pytest.fail("none")
    del state["progress"]["damaged"]
    state["progress"] |= {"damaged_images": 2, "trained": 1}
    save_checkpoint(begun.path / "checkpoints", 12, tensors, state)
    assert begun.load()[0] == RunState(trained=1)


def git(folder: Path, *arguments: str) -> str:
    """Return what git says in a folder, as somebody who may commit."""
    who = ("-c", "user.name=A", "-c", "user.email=a@b")
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def repository(folder: Path, package: str = "pareco") -> Path:
    """Return a package in the folder, which a new repository there tracks."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").touch()
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder / package


def test_the_commit_is_that_of_the_checkout_that_tracks_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = repository(tmp_path / "own"), repository(tmp_path / "other", "else")
    monkeypatch.setenv("GIT_DIR", str(other.parent / ".git"))  # as in a hook of the other one
    monkeypatch.chdir(other)
    commit = git(own.parent, "--git-dir", str(own.parent / ".git"), "rev-parse", "HEAD")
    assert commit_of(own) == (commit, False)
    (own / "new.py").touch()
    assert commit_of(own) == (commit, True)
    (own / "new.py").unlink()
    (own.parent / "results").mkdir()
    (own.parent / "results" / "table.md").touch()
    assert commit_of(own) == (commit, False)


@pytest.mark.parametrize("tracked", [False, True])
def test_a_package_inside_another_repository_has_no_commit(tmp_path: Path, tracked: bool) -> None:
    repository(tmp_path, "else")
    package = tmp_path / ".venv" / "lib" / "site-packages" / "pareco"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    if tracked:
        git(tmp_path, "add", "-f", ".")
        git(tmp_path, "commit", "-q", "-m", "the environment too")
    assert commit_of(package) == (None, None)


def test_a_package_in_no_repository_has_no_commit_but_a_version(tmp_path: Path) -> None:
    assert commit_of(tmp_path / "pareco") == (None, None)
    version = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    found = environment("abc", ALONE)["packages"]["pareco"]
    assert f'\nversion = "{found}"\n' in version
