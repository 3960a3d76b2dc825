"""The batch norm of a finished run's front, measured again where the run did not keep it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from pareco.bundle.sealed import BundleError
from pareco.config import Machine
from pareco.data import DataSet, load_data
from pareco.evaluation import Evaluator
from pareco.processes import joined_processes, set_arithmetic
from pareco.reporting.reading import read_json
from pareco.schema import CONFIGURATION, RESULT, SESSIONS
from pareco.slimmable import SlimmableNet
from pareco.training.preparation import stored_experiment, untrained_network
from pareco.widths import Widths


class Recalibration:
    """Calibrates the front of a run of an earlier version on the images that the run took."""

    def __init__(self, folder: Path, machine: Machine) -> None:
        """Find the images. Raises `BundleError` where they are not those of the run; `OSError`."""
        self.folder = folder
        configuration = read_json(folder / "config.json", CONFIGURATION)
        self.experiment = stored_experiment(configuration)
        self.seed = read_json(folder / "result.json", RESULT).seed
        self.processes = joined_processes(machine.device)
        session = read_json(folder / "env.json", SESSIONS)[0]
        self.data: DataSet = load_data(self.experiment.data, machine, self.processes.device)
        if session.get("data_fingerprint") != self.data.fingerprint:
            raise BundleError(f"{folder} is of other images: say with --images where its own lie")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their labels."""
        return self.data.store.classes

    def networks(self, front: Sequence[Widths]) -> Iterator[tuple[int, Widths, dict[str, Tensor]]]:
        """Yield the set of weights, widths and own batch norm of each network of a front.

        On the machine and versions of the run these are what it measured with, bit for bit.
        Raises `BundleError` for a run with batch-norm weights for each network.
        """
        set_arithmetic(self.experiment.training)
        sets = len(list((self.folder / "weights").glob("*.safetensors")))
        if sets not in (1, len(front)):
            raise BundleError(f"{self.folder}: {sets} sets of weights, {len(front)} networks")
        evaluator = self._evaluator(0)
        for place, widths in enumerate(front):
            index = place if sets > 1 else 0  # several sets have one network each, in this order
            if index:
                evaluator = self._evaluator(index)
            yield index, widths, evaluator.own_norm(widths)

    def _evaluator(self, index: int) -> Evaluator:
        experiment, data = self.experiment, self.data
        return Evaluator(
            self._net(index),
            data.train,
            data.search,
            experiment.evaluation,
            self.seed,
            self.processes,
            precision=experiment.training.precision,
        )

    def _net(self, index: int) -> SlimmableNet:
        data = self.data
        net = untrained_network(self.experiment, data.num_classes, data.in_chans)
        weights = load_file(self.folder / "weights" / f"{index}.safetensors")
        if extra := sorted(weights.keys() - net.state_dict().keys()):
            raise BundleError(
                f"{self.folder} has batch-norm weights of each network ({extra[0]}), and was run "
                "before runs kept which are whose: run it again"
            )
        net.load_state_dict(weights)
        net.to(self.processes.device)
        if self.experiment.training.channels_last:
            net.keep_channels_last()
        return net
