"""The application `python -m replications`, on a tiny experiment beside those of replications/."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from filelock import FileLock
from rich.console import Console

import replications
from pareco import latency, processes
from pareco.config import Machine
from pareco.data import loading
from pareco.processes import Processes, Share
from pareco.training import run as training_run
from replications import site, sweep
from replications.__main__ import main
from replications.catalogue import experiment_named
from replications.run import RunCommand
from replications.scales import SCALES
from replications.sweep import Job
from tests.experiments import TINY, quick

ROOT = Path(sweep.__file__).parent.parent
PLAIN = ("--network.base-width", "None")
ALONE = ("--training.no-sync-batch-norm",)
LCNET = ("run", "tiny", *PLAIN, "--network.name", "lcnet_050", "--data.image-size", "16")
LCNET = (*LCNET, "--data.search-images", "10", "--methods", "us_net")
DIVISOR = ("tiny", "--network.base-width", "6", "--network.divisor", "16")
LARGE = ("--data.image-size", "64")
HEAVY = ("torch", "botorch", "timm", "wandb", "pandas")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    folders = [*replications.__path__, str(Path(__file__).parent)]
    monkeypatch.setattr(replications, "__path__", folders)
    for name, value in {"_PASSES": 1, "_SECONDS": 1e-6}.items():
        monkeypatch.setattr(latency, name, value)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a folder with runs and results of the tiny experiment, and what the command said."""
    folder, said = tmp_path_factory.mktemp("finished"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        _tiny.__wrapped__(patch, folder)  # type: ignore[attr-defined]
        assert main(["run", "tiny"]) == 0
    return folder, said.getvalue()


@pytest.fixture
def done(finished: tuple[Path, str], tmp_path: Path) -> None:
    """Copy the finished runs and their results to the current folder."""
    for name in ("runs", "results"):
        shutil.copytree(finished[0] / name, tmp_path / name)


NOT_NAMED = "run needs the name of an experiment first; known: cifar100_resnet20"
LIGHT = {
    "": (
        2,
        "Expected one of {list, run, plan, costs, data, report, compare, claims, bench, searches",
    ),
    "lst": (2, "Unrecognized options: lst; known: list, run, plan, costs, data, report"),
    "list tiny": (2, "Unrecognized options: tiny"),
    "run": (2, NOT_NAMED),
    "run --scale cpu digits": (2, NOT_NAMED),
    "run digit": (2, "unknown experiment 'digit'. Did you mean 'digits'? Known: cifar100_res"),
    "run digits --scale cpuu": (2, "unknown scale 'cpuu'. Did you mean 'cpu'? Known: paper"),
    "run digits --scale": (2, "Missing value for argument '--scale'"),
    "run digits --method us-net": (2, "unknown method 'us-net'. Did you mean 'us_net'? Known"),
    "run digits --methods pareco nothing": (2, "unknown method 'nothing'"),
    "run digits --name a/b": (2, "name must be letters"),
    "run digits --name cifar10_resnet20": (2, "cifar10_resnet20 is taken in the results"),
    "run digits --name digits-smoke": (2, "digits-smoke is taken in the results"),
    "run digits --name published": (2, "published is taken in the results"),
    "run digits --data.name any": (2, "unknown data set 'any'. Known: digits, digits_rgb, cifar10"),
    "--scale smoke run digits": (2, "the command comes first, before --scale"),
    "run digits --seeds 0 0": (2, "seeds must name none twice, and they do 0"),
    "run digits --seeds abc": (2, "--seeds: Could not find valid parse"),
    "run digits --seed -1": (2, "seed must not be negative"),
    "run digits --training.epoch 3": (2, "--training.epoch, 3; did you mean --training.epochs?"),
    "run digits --training.optimizer adamw": (2, "set it to False (--training.no-nesterov)"),
    "run digits --training.epochs many": (2, "--training.epochs: invalid literal"),
    "run digits --network.alpha-min 1.5": (2, "alpha_min must be between 0 and 1"),
    "run digits --network.no-order-channels": (2, "network.order_channels False is about weights"),
    "run digits --network.pretrained --network.weights a.pt": (2, "give one of them"),
    "run digits --workers 0": (2, "workers must be at least 1"),
    "run digits --part 0/4": (2, "part must be K/N with K from 1 to N, such as 2/4, got 0/4"),
    "run digits --part 5/4": (2, "part must be K/N with K from 1 to N, such as 2/4, got 5/4"),
    "run digits --part half": (2, "part must be K/N with K from 1 to N, such as 2/4, got half"),
    "run digits --engine rey": (2, "'--engine'. Expected one of ('local', 'ray')"),
    "run digits --claim-seconds -1": (2, "claim_seconds must not be negative"),
    "run digits --device gpu": (2, "'--device'. Expected one of ('auto', 'cpu')"),
    "run digits --checkpoint-minutes -1": (2, "checkpoint_minutes must not be negative"),
    "run digits --images /no/where": (2, "--images /no/where: no such folder; meanwhile, on emb"),
    "report": (2, "report needs the name of an experiment, or --all without a name"),
    "report digits --all": (2, "or --all without a name"),
    "claims --results none": (2, "--results none: no such folder"),
    "wandb-sync --runs none": (2, "--runs none: no such folder"),
    "report --all --add": (2, "--all reads no runs, so there is nothing to --add"),
    "report nothing": (2, "no finished run in runs/nothing, no records in results (there are of "),
    "report longer --scale cpu": (2, "no finished run in runs/longer-cpu, no records in results"),
    "wandb-report": (2, "NAME"),
    "--help": (0, "{list,run,plan,costs,data,report,compare,claims"),
    "run --help": (0, "--training.epochs"),
    "data": (2, "FOLDER"),
    "data /no/where": (2, "--images /no/where: no such folder"),
    "data --help": (0, "--json"),
    "run own": (2, "unknown data set 'own'"),
    "run own --images /no/where": (2, "--images /no/where: no such folder; meanwhile, on embedded"),
    "run own --scale smoke --help": (0, "--data.train-images"),
    "run digits --images .": (2, "digits is embedded in scikit-learn: no --images"),
    "run digits --scale cpu --help": (0, "Passes over the training split. (default: 20)"),
    "report --help": (0, "--allow-unequal-budgets"),
    "compare": (2, "give the names of two or more experiments, each once"),
    "compare digits nothing": (2, "no records of 'nothing' in results. There are: cifar10_"),
    "claims --help": (0, "--file"),
    "wandb-report --help": (0, "--json"),
    "bench --help": (0, "--only"),
    "bench --device cuda --only step": (2, "--only is of the CPU's measurements"),
    "bench --device gpu": (2, "'--device'. Expected one of ('cpu', 'cuda')"),
    "searches --help": (0, "--make-table"),
    "searches --problems tabel": (2, "unknown 'tabel'"),
    "searches --make-table": (2, "--make-table needs the finished run"),
    "feeding --help": (0, "--budgets"),
    "feeding --ways bas": (2, "--ways: unknown 'bas'. Known: base, refresh_images"),
    "feeding --budgets 0": (2, "budgets above 0"),
    "list": (0, "scales (--scale): paper, fast, short, smoke, cpu"),
    "pareco --help": (0, "profile"),
    "pareco profile --help": (0, "--alpha-min"),
    "pareco profile": (2, "NETWORK"),
    "pareco bundle --help": (0, "--output"),
    "pareco bundle": (2, "RUN"),
    "pareco predict --help": (0, "--latency-ms"),
    "pareco predict": (2, "BUNDLE"),
    "pareco predict a.pareco b.png --top 0": (2, "--top must be at least 1"),
    "pareco profile cifar_resnet8 --widt 0.5": (2, "did you mean --width?"),
}


@pytest.fixture(scope="module")
def light() -> dict[str, Any]:
    """Return what each light request says, all in one process, and what that has imported."""
    script = """
import contextlib, io, json, sys
from pareco.cli import main as pareco
from replications.__main__ import main
said = {}
for line in json.load(sys.stdin):
    words, out, err = line.split(), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = pareco(words[1:]) if words[:1] == ["pareco"] else main(words)
        except SystemExit as end:
            status = end.code or 0
    said[line] = status, out.getvalue(), err.getvalue()
print(json.dumps({"said": said, "modules": list(sys.modules)}))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, input=json.dumps(list(LIGHT)), capture_output=True, text=True,
                          cwd=ROOT, check=True)  # fmt: skip
    return json.loads(done.stdout)


def test_light_requests_import_nothing_heavy(light: dict[str, Any]) -> None:
    assert not set(HEAVY) & set(light["modules"])


@pytest.mark.parametrize("line", LIGHT)
def test_a_bad_request_is_one_line_and_status_2(light: dict[str, Any], line: str) -> None:
    expected, message = LIGHT[line]
    status, out, err = light["said"][line]
    assert status == expected
    if expected:
        assert not out
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1
        assert message in err
    else:
        assert message in " ".join(out.replace("│", " ").split())
        assert not err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "--all"], "there are no records in results"),
        (["run", "tiny", *PLAIN, "--network.name", "resnet1"], "unknown network 'resnet1'"),
        (
            ["run", "tiny", *PLAIN, *LARGE, "--network.name", "efficientnet_cc_b0_4e"],
            "a parameter or buffer is used outside",
        ),
        (["run", "tiny", "--network.weights", "a.pt"], "network.weights a.pt: No such file"),
        (["plan", "tiny", "--network.weights", "a.pt"], "network.weights a.pt: No such file"),
        (["run", "tiny", "--network.started-from", "sha256:0"], "say where these weights are"),
        (["run", "tiny", "--training.batch-size", "701"], "exceeds the 700 training images"),
        (["run", "tiny", "--check", "1", "--training.batch-size", "701"], "exceeds the 700"),
        (
            ["run", "tiny", "--check", "3"],
            "training.batch_size 100 cannot be shared by 3 processes",
        ),
        (["run", "tiny", "--data.name", "cifar10", "--images", "."], "--images .: holds nothing"),
        (["run", "tiny", "--data.name", "cifar10", "--images", "."], "images: --scale smoke"),
        (
            ["run", "tiny", "--data.image-size", "50000"],
            "data.in_memory: 1797 images of ",
        ),
        (["run", "tiny", "--seed", f"{2**63}"], "seed must be below 2^63"),
        (["run", "tiny", "--engine", "ray", "--check", "2"], "--engine ray trains each run in one"),
        (["run", "tiny", "--evaluation.calibration-images", "800"], "calibration_images: 800"),
        (
            ["run", "tiny", "--methods", "s_net", "--training.sampled-per-step", "30"],
            "method s_net: only 11 of 32 evenly spread uniform widths are distinct at "
            "network.divisor 1, network.alpha_min 0.42 and training.sampled_per_step 30",
        ),
        (
            ["run", *DIVISOR],
            "method us_net finds only 2 distinct networks for a step, pareco 4 (training.sampled",
        ),
        (
            ["run", *DIVISOR],
            "network.alpha_min 0.42, network.granularity layer). What helps: a lower divisor or",
        ),
        (
            ["run", "tiny", "--training.sampled-per-step", "30", "--check", "1"],
            "method us_net finds only 11 distinct networks for a step, ",
        ),
        (
            [*LCNET, "--training.batch-size", "1", "--check", "1"],
            "training.batch_size 1 is one image for each process, of which lcnet_050 leaves",
        ),
        ([*LCNET, *ALONE, "--training.batch-size", "4", "--check", "4"], "take at least 8"),
        ([*LCNET, "--training.batch-size", "22", "--check", "11"], "data.search_images 10 cannot"),
        ([*LCNET, *ALONE, "--training.batch-size", "20", "--check", "10"], "data.search_images 10"),
    ],
)
def test_what_could_not_run_or_be_reported_is_refused_before_anything_is_begun(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(Path().iterdir())  # so that the corrected command can run


RUNNABLE = [
    ["tiny", "--training.batch-size", "1"],  # 2 x 2 positions are left of 8 x 8
    ["tiny", "--training.sampled-per-step", "0"],
    [*DIVISOR, "--methods", "us_net"],  # nothing is compared
    [*DIVISOR, "--allow-unequal-budgets"],
    [*DIVISOR, "--network.granularity", "network"],  # all methods find as many
    ["tiny", "--network.alpha-min", "0.99"],
    [*LCNET[1:], "--training.batch-size", "4", "--check", "4"],  # normalized together
]


@pytest.mark.parametrize("arguments", quick(RUNNABLE, RUNNABLE[0], RUNNABLE[3], RUNNABLE[6]))
def test_what_can_run_is_not_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *arguments, *([] if "--check" in arguments else ["--check", "1"])]) == 0
    assert "can begin" in capsys.readouterr().out


def test_run_trains_measures_and_reports(finished: tuple[Path, str]) -> None:
    folder, shown = finished
    figures = ["error_vs_flops.svg", "error_vs_latency.png", "widths.png", "curves.svg"]
    for name in ["tiny/table.md", *(f"tiny/{figure}" for figure in figures), "index.html"]:
        assert f"results/{name}" in shown
        assert (folder / "results" / name).stat().st_size > 0
    summary = (folder / "results/README.md").read_text()
    assert "| [tiny](tiny/table.md) | paper | cifar_resnet8 on digits, 8 px | 2 methods" in summary
    assert "done pareco seed 0 after" in shown


@pytest.mark.slow
@pytest.mark.usefixtures("done")
def test_what_has_finished_is_reported_again_to_the_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the runs, from records alone; the latencies of the same networks are kept."""
    monkeypatch.setattr(latency, "_milliseconds", lambda *arguments: pytest.fail("measured"))
    (tmp_path / "runs/tiny/latency.json").unlink()
    written = [file for file in (tmp_path / "results").rglob("*") if file.is_file()]
    first = {file: file.read_bytes() for file in written}
    assert main(["run", "tiny"]) == 0
    assert "2 of 2 runs have finished before" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in first} == first
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    for arguments in (["tiny"], ["--all"]):
        assert main(["report", *arguments]) == 0
        assert {file: file.read_bytes() for file in first} == first


@pytest.mark.slow
@pytest.mark.usefixtures("done")
@pytest.mark.parametrize("damaged", [False, True])
def test_latencies_of_another_network_are_not_kept(
    tmp_path: Path, damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor damaged ones: widths are alike where images have another size."""
    measured: list[object] = []
    real = latency._milliseconds
    monkeypatch.setattr(
        latency, "_milliseconds", lambda *given: measured.append(given) or real(*given)
    )
    (tmp_path / "runs/tiny/latency.json").unlink()
    path = tmp_path / "results/tiny/records" / ("latency.json" if damaged else "network.json")
    text = "{" if damaged else path.read_text().replace('"image_size": 8', '"image_size": 16')
    path.write_text(text)
    assert main(["run", "tiny"]) == 0
    assert len(measured) == 1


@pytest.mark.slow
def test_one_method_at_a_time_reports_when_all_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under a name and at a scale, both of which the folder has; brackets in a path are kept."""
    flags = ["--scale", "short", "--results", "[b]results"]
    assert main(["run", "tiny", *flags, "--name", "longer", "--method", "us_net"]) == 0
    waiting = "No report yet: 1 of 2 runs not finished (such as pareco seed 0)"
    assert waiting in capsys.readouterr().out
    assert not list(tmp_path.glob("*results/*"))
    arguments = ["--name", "longer", "--method", "pareco", "--seed", "0"]
    assert main(["run", "tiny", *flags, *arguments]) == 0
    assert (tmp_path / "runs/longer-short/us_net/seed0/DONE").exists()
    capsys.readouterr()
    assert main(["report", "longer", *flags]) == 0
    assert "[b]results/longer-short/table.md" in capsys.readouterr().out


def chosen_by(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> list[Job]:
    """Return the jobs that a command line asks for, with none of them done."""
    asked: list[Job] = []
    monkeypatch.setattr(sweep, "run_jobs", lambda jobs, **options: asked.extend(jobs) or [])
    assert main(["run", "tiny", *arguments]) == 0
    return asked


def test_parts_are_every_nth_run_and_together_all(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--seeds", "3", "4", "5"]
    jobs = [str(job) for job in chosen_by(monkeypatch, flags)]
    parts = [
        [str(job) for job in chosen_by(monkeypatch, [*flags, "--part", f"{k}/4"])]
        for k in (1, 2, 3, 4)
    ]
    assert parts == [[jobs[0], jobs[4]], [jobs[1], jobs[5]], [jobs[2]], [jobs[3]]]
    assert not chosen_by(monkeypatch, [*flags, "--part", "8/9"])


@pytest.mark.slow
def test_the_last_part_reports_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "tiny", "--part", "2/2"]) == 0
    assert "No report yet: 1 of 2 runs not finished" in capsys.readouterr().out
    assert main(["plan", "tiny", "--part", "2/2", "--json"]) == 0
    (planned,) = json.loads(capsys.readouterr().out)["runs"]
    assert planned["method"] == "us_net"
    assert main(["run", "tiny", "--part", "1/2"]) == 0
    fronts = (tmp_path / "results/tiny/records/fronts.csv").read_text().splitlines()
    assert {line.split(",")[1] for line in fronts[1:]} == {"pareco", "us_net"}


@pytest.mark.usefixtures("done")
def test_experiments_are_compared_in_the_terminal_and_as_markdown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree("results/tiny", "results/other")
    network = Path("results/other/records/network.json")
    network.write_text(network.read_text().replace('"experiment": "tiny"', '"experiment": "other"'))

    assert main(["compare", "tiny", "other", "--cost", "params"]) == 0
    assert "Difference to A, seed by seed" in capsys.readouterr().out
    assert main(["compare", "tiny", "other", "--markdown"]) == 0
    text = capsys.readouterr().out
    assert "# other beside tiny" in text
    assert "| B | other | the same |" in text
    assert main(["compare", "tiny", "other", "--cost", "mac"]) == 2
    assert "tiny has no mac. It has: macs, params" in capsys.readouterr().err


def test_a_scale_is_the_default_that_other_flags_change(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--training.batch-size", "50", "--scale=short", "--seeds", "3"]
    jobs = chosen_by(monkeypatch, flags)
    experiment = jobs[0].experiment
    assert experiment.name == "tiny-short"
    plain = SCALES["short"](TINY).scale
    assert experiment.scale == f"{plain}, changed: training.batch_size 50"
    assert (experiment.training.epochs, experiment.training.batch_size) == (1, 50)
    assert [(job.method, job.seed) for job in jobs] == [("pareco", 3), ("us_net", 3)]


def test_a_scale_names_all_that_differs_but_name_methods_and_seeds() -> None:
    """As docs/results.md says of claims: of these three, records are asked for their own."""
    plain = experiment_named("digits", "paper")
    free = replace(plain, name="other", methods=("us_net",), seeds=(7,))
    assert RunCommand(of="digits", experiment=free).configured().scale == "paper"
    other = replace(free, data=replace(plain.data, image_size=plain.data.image_size + 1))
    scale = RunCommand(of="digits", experiment=other).configured().scale
    assert scale == f"paper, changed: data.image_size {other.data.image_size}"


@pytest.mark.parametrize(("count", "told"), [(1, ""), (4, "; batch norm in each of 4 processes")])
def test_a_scale_names_the_processes_that_have_batch_norm_of_their_own(
    monkeypatch: pytest.MonkeyPatch, count: int, told: str
) -> None:
    """So that their number is a part of the configuration; alone, one sees the whole batch."""
    joined = Mock(return_value=Processes(torch.device("cpu"), Share(0, count)))
    monkeypatch.setattr(processes, "joined_processes", joined)
    command = RunCommand(of="digits", experiment=experiment_named("digits", "paper"))
    assert command.configured().scale == "paper"
    training = replace(command.experiment.training, sync_batch_norm=False)
    apart = replace(command, experiment=replace(command.experiment, training=training))
    said = "" if not command.experiment.training.sync_batch_norm else ", changed: "
    said += "training.sync_batch_norm False" if said else ""
    assert apart.configured().scale == f"paper{said}{told}"
    assert (
        replace(apart, check=3).configured().scale.endswith("; batch norm in each of 3 processes")
    )


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--name", "other"], "other"),  # as published: nothing to add
        (["--name", "other", "--scale", "short"], "other-short"),
        (["--name", "other-short", "--scale", "short"], "other-short"),
        (["--name", "tiny", "--scale", "smoke"], "tiny-smoke"),
    ],
)
def test_name_methods_and_seeds_change_no_scale(
    flags: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = chosen_by(monkeypatch, [*flags, "--methods", "us_net", "--seeds", "3"])
    scale = flags[-1] if "--scale" in flags else "paper"
    assert (job.experiment.name, job.experiment.scale) == (name, SCALES[scale](TINY).scale)


def test_methods_of_reference_run_with_fewer_seeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless they are asked for by name; then a user's seeds are all run."""

    def runs(*flags: str) -> list[str]:
        return [f"{job.method} {job.seed}" for job in chosen_by(monkeypatch, list(flags))]

    fewer = ("--reference-methods", "us_net")
    assert runs("--seeds", "3", "4", *fewer) == ["pareco 3", "us_net 3", "pareco 4"]
    assert runs("--seeds", "3", "4", *fewer, "--seed", "4") == ["pareco 4"]
    assert runs("--seeds", "3", "4", *fewer, "--seed", "5") == ["pareco 5", "us_net 5"]
    picked = ("--seed", "4", "--method", "us_net")
    assert runs("--seeds", "3", "4", *fewer, *picked) == ["us_net 4"]
    assert main(["run", "tiny", "--reference-methods", "s_net"]) == 2
    assert "--reference-methods s_net: not among --methods" in capsys.readouterr().err
    plain = replace(TINY, seeds=(3, 4), reference_methods=("us_net",))
    asked = replace(plain, methods=("us_net",))
    command = RunCommand(of="tiny", experiment=asked, default=plain)
    jobs = replace(command, experiment=command.configured()).every_job()
    assert [(job.method, job.seed) for job in jobs] == [("us_net", 3), ("us_net", 4)]


def test_what_the_machine_is_like_reaches_the_jobs_and_not_the_experiment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = chosen_by(monkeypatch, [])
    flags = ["--device", "cpu", "--decoding-workers", "2", "--checkpoint-minutes", "0.5"]
    jobs = chosen_by(monkeypatch, flags)
    machine = Machine(device="cpu", decoding_workers=2, checkpoint_minutes=0.5)
    assert {job.machine for job in jobs} == {machine}
    without = [[replace(job, machine=Machine()) for job in some] for some in (jobs, plain)]
    assert without[0] == without[1]
    assert all((job.machine.decoding_workers or 0) >= 1 for job in plain)


def test_decoders_are_shared_by_the_runs_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (processes, loading):
        monkeypatch.setattr(module, "usable_cores", lambda: 12)
    flags = ["--scale", "smoke", "--methods", "pareco", "us_net", "--seeds", "3", "4", "5"]
    assert {job.machine.decoding_workers for job in chosen_by(monkeypatch, flags)} == {2}
    for seed in (3, 4):
        for method in ("pareco", "us_net"):
            folder = Path("runs/tiny-smoke", method, f"seed{seed}")
            folder.mkdir(parents=True)
            (folder / "DONE").touch()
    left = chosen_by(monkeypatch, flags)
    assert [job.seed for job in left] == [5, 5]
    assert {job.machine.decoding_workers for job in left} == {6}


@pytest.mark.parametrize(
    ("gpus", "workers", "said"),
    [
        (0, None, "runs at a time: 3; decoding processes of each: 7\n"),
        (8, None, "runs at a time: 5, each on a GPU of its own; decoding processes of each: 7\n"),
        (
            2,
            4,
            "runs at a time: 4, in turn on 2 GPUs; decoding processes of each: 7\n",
        ),
    ],
)
def test_how_runs_are_placed_is_said(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    gpus: int,
    workers: int | None,
    said: str,
) -> None:
    monkeypatch.setattr(processes, "usable_cores", lambda: 3)
    monkeypatch.setattr(processes, "visible_devices", lambda: [*map(str, range(gpus))])
    on_files = replace(TINY, data=replace(TINY.data, name="cifar10"))
    machine = Machine(decoding_workers=7)
    command = RunCommand(of="tiny", experiment=on_files, machine=machine, workers=workers)
    _, at_a_time = command._engine(5, Console(width=200))
    assert capsys.readouterr().out == said
    assert f"runs at a time: {at_a_time}" in said


def test_a_launchers_processes_are_said_to_be_on_one_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setattr(RunCommand, "_check", lambda self: None)
    monkeypatch.setattr(RunCommand, "_subject", lambda self: "")
    monkeypatch.setattr(sweep, "run_jobs_together", lambda jobs, console: [])
    RunCommand(of="tiny", experiment=TINY)._trained_and_reported(Console(width=200))
    assert "one network on 8 processes\n" in capsys.readouterr().out  # no file is decoded


@pytest.mark.parametrize("graphs", [False, True])
def test_what_could_not_run_is_found_without_a_gpu_where_workers_do_the_runs(
    monkeypatch: pytest.MonkeyPatch, graphs: bool
) -> None:
    """This one is nowhere: whatever opened it would fail."""
    absent = Processes(torch.device("cuda", 99))
    assert absent.beforehand.device == torch.device("cpu")
    for module in (processes, training_run):
        monkeypatch.setattr(module, "joined_processes", lambda device: absent)
    training = replace(TINY.training, cuda_graphs=graphs)
    command = RunCommand(of="tiny", experiment=replace(TINY, training=training))
    command._check()
    assert "digits: 10 classes" in command._subject()
    one_of_two = replace(absent, share=Share(0, 2))
    assert one_of_two.beforehand == one_of_two  # it trains by itself


def test_a_check_begins_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "tiny", "--check", "2"]) == 0
    assert capsys.readouterr().out == "2 runs can begin\n"
    assert not list(Path().iterdir())


@pytest.mark.usefixtures("done")
def test_of_several_processes_one_speaks_and_reports(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("results/tiny/table.md").unlink()
    monkeypatch.setenv("RANK", "1")
    assert main(["run", "tiny"]) == 0
    assert main(["run", "nothing"]) == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.startswith("error in process 1: unknown experiment 'nothing'")
    assert not Path("results/tiny/table.md").exists()


@pytest.mark.usefixtures("done")
def test_another_configuration_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tmp_path / "runs/tiny/pareco")
    assert main(["run", "tiny", "--method", "us_net", "--training.epochs", "3"]) == 2
    message = capsys.readouterr().err
    assert "training.epochs: 2 there, 3 now" in message
    assert "--name NAME" in message
    other = ["--seeds", "5", "--methods", "pareco", "--training.epochs", "3"]
    assert main(["run", "tiny", *other]) == 2
    assert not (tmp_path / "runs/tiny/pareco").exists()
    assert main(["run", "tiny", *other, "--name", "longer", "--check", "1"]) == 0


def test_a_failed_run_fails_the_sweep_and_spares_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs/tiny/us_net/seed0"
    folder.mkdir(parents=True)
    (tmp_path / "runs/tiny/pareco").mkdir()
    (tmp_path / "runs/tiny/pareco/seed0").write_text("in the way")
    assert main(["report", "tiny"]) == 2
    assert "no finished run in runs/tiny, no records in results" in capsys.readouterr().err
    with FileLock(folder / ".lock"):
        assert main(["run", "tiny", "--methods", "pareco", "us_net", "random_widths"]) == 1
    shown = capsys.readouterr().out
    assert "failed pareco seed 0" in shown
    assert "is in use by another process" in " ".join(shown.split())
    assert "2 of 3 runs failed" in shown
    assert (tmp_path / "runs/tiny/random_widths/seed0/DONE").exists()


@pytest.mark.usefixtures("done")
def test_what_could_not_be_added_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the record has otherwise, in runs elsewhere: fields, own settings, the data."""
    monkeypatch.setattr(RunCommand, "report", lambda *_: None)
    flags = ["--add", "--runs", "elsewhere", "--seeds", "1"]
    asked = [str(job) for job in chosen_by(monkeypatch, flags)]
    assert asked == ["pareco seed 1", "us_net seed 1"]

    def refused(*more: str) -> str:
        capsys.readouterr()
        assert main(["run", "tiny", *flags, *more]) == 2
        return capsys.readouterr().err

    why = "the records of 'tiny' are of another configuration"
    assert f"{why} (training.epochs: 2 there, 3 now)" in refused("--training.epochs", "3")
    assert f"{why} (training.macs: None there, 9" in refused("--training.macs", "9000000000")
    assert "data.split_seed: 0 there, 1 now" in refused("--data.split-seed", "1")
    record = tmp_path / "results/tiny/records/config.json"
    stored = json.loads(record.read_text())
    for part, key, value in (
        ("pareco", "unset.search.half_life", 0.75),
        ("common", "data fingerprint", "other"),
        ("common", "processes", 2),
    ):
        changed = stored | {part: stored[part] | {key: value}}
        record.write_text(json.dumps(changed))
        message = refused()
        assert f"({key}" in message
        assert f": {value} there" in message
    assert not list(tmp_path.glob("elsewhere/*/*/seed*"))
    assert chosen_by(monkeypatch, flags[1:])  # they are not to be added


@pytest.mark.usefixtures("done")
def test_latencies_of_experiments_are_measured_together(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "write_site", lambda results, console: None)
    shutil.copytree("results/tiny", "results/other")
    for name, old in (("network.json", '"experiment": "tiny"'), ("config.json", '"name": "tiny"')):
        file = Path("results/other/records") / name
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, old.replace("tiny", "other")))
    command = ["compare", "tiny", "other", "--cost", "latency_ms", "--device", "cpu"]
    before = Path("results/other/table.md").read_text()

    assert main([*command, "--measure"]) == 0

    assert "latency" in capsys.readouterr().out
    both = [Path("results") / each / "records/latency.json" for each in ("tiny", "other")]
    texts = {path.read_text() for path in both}
    assert len(texts) == 1
    assert json.loads(texts.pop())["device"] == "cpu"
    assert Path("results/other/table.md").read_text() != before
    assert main(command) == 0  # from the records
    Path("results/tiny/records/config.json").unlink()
    assert main([*command, "--measure"]) == 2
    assert "the records of tiny do not say what network it is" in capsys.readouterr().err
