"""The real W&B client in a process of its own, with the stub for its server."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pareco
from tests.wandb_server import KEY, WandbServer

ROOT = Path(pareco.__file__).parents[1]
PREAMBLE = """
import logging, os, signal, sys, threading, time, urllib.error, urllib.request
from pathlib import Path
from pareco.tracking import Publication, Tracker
logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
folder = Path("runs/digits/pareco/seed0")

def tracker(resume_from=None):
    return Tracker(folder, project="pareco", group="digits", job_type="pareco",
                   name="pareco-seed0", config={"seed": 0}, resume_from=resume_from)

def log(tracker, first, last):
    for step in range(first, last):
        tracker.log(step, loss=1 / (step + 1))

def let_the_server_die():
    try:
        urllib.request.urlopen(os.environ["WANDB_BASE_URL"] + "/die")
    except urllib.error.HTTPError as error:
        error.close()
"""

COMMAND = """
import sys
from rich.console import Console
from replications.wandb_commands import {function}

name = None if sys.argv[1:2] == [] or sys.argv[1].startswith("-") else sys.argv.pop(1)
try:
    sys.exit({function}(name, sys.argv[1:], Console()))
except ValueError as error:
    print("error:", error, file=sys.stderr)
    sys.exit(2)
"""


def environment(home: Path, server: WandbServer | None, **variables: str) -> dict[str, str]:
    """Return the environment of a user whose home is that folder, with a key if with a server."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    there = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.address} if server else {}
    return {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), **there, **variables}


def run_script(
    home: Path, server: WandbServer | None, *scripts: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run Python code after the preamble, in the folder `home`."""
    code = PREAMBLE + "".join(map(textwrap.dedent, scripts))
    return _run([sys.executable, "-c", code], home, server, **variables)


def run_command(
    home: Path, server: WandbServer | None, function: str, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a function of `replications.wandb_commands`, in the folder `home`.

    `python -m replications` does the same, after seconds of imports that these do not need.
    """
    code = COMMAND.format(function=function)
    return _run([sys.executable, "-c", code, *arguments], home, server, **variables)


def _run(
    command: list[str], home: Path, server: WandbServer | None, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=environment(home, server, **variables),
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
