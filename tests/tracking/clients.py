"""The real W&B client in a process of its own, with the stub for its server."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pareco
from tests.wandb_server import KEY, WandbServer

ROOT = Path(pareco.__file__).parents[1]
RUN = Path("runs/digits/pareco/seed0")
PREAMBLE = """
import json, logging, os, signal, time
from pathlib import Path
from rich.console import Console
from pareco.tracking import Publication, Tracker, mirror, sync
from pareco.tracking.mirror import answers
logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
folder = Path("runs/digits/pareco/seed0")

def tracker(resume_from=None):
    folder.mkdir(parents=True, exist_ok=True)
    config = {"name": "digits", "method": "pareco", "seed": 0}
    (folder / "config.json").write_text(json.dumps(config))
    return Tracker(folder, project="pareco", config=config, resume_from=resume_from)

def log(tracker, first, last):
    for step in range(first, last):
        tracker.log(step, loss=1 / (step + 1))

def publication(folder=folder):
    import pandas as pd
    from matplotlib.figure import Figure
    (folder / "weights").mkdir(exist_ok=True)
    (folder / "weights/0.safetensors").write_bytes(bytes(range(256)) * 50)
    (folder / "front.csv").write_text("macs,test_top1_error\\n20,3.5\\n")
    front = pd.DataFrame({"widths": ["8 8", "2 4"], "macs": [40, 20],
                          "test_top1_error": [2.5, 3.5]})
    figure = Figure()
    figure.subplots().plot([0, 1])
    return Publication(
        front=front, cost="macs", figures={"errors": figure}, summary={"passes": 12},
        artifacts={"front": [folder / "front.csv"],
                   "model": [folder / "weights/0.safetensors"]})

def synced():
    "The runs that a sync was about, each with what went wrong."
    results = sync.sync_runs(Path("runs"), project="pareco", publication=publication)
    return [(str(folder), problem) for folder, problem in results]

def told(command, *arguments):
    "The exit status of a command, or how it refuses."
    try:
        return command(*arguments, Console())
    except ValueError as error:
        return str(error)

def let_the_server_die():
    assert not answers(os.environ["WANDB_BASE_URL"] + "/die")

def seconds(work, *arguments, **values):
    started = time.monotonic()
    work(*arguments, **values)
    return time.monotonic() - started
"""


def run_script(
    home: Path, server: WandbServer | None, script: str, status: int = 0, /, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run Python code after the preamble, as a user whose home is that folder, and in it.

    With a key if with a server. It has to end with the status.
    """
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    there = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.address} if server else {}
    finished = subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(script)],
        env={**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), **there, **variables},
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert finished.returncode == status, finished.stderr
    return finished


def recorded_steps(home: Path) -> list[int]:
    """The steps in the metrics file of the run that the preamble makes."""
    lines = (home / RUN / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]
