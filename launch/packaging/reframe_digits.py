"""A ReFrame check: the digits example trains, and the loss that it prints is the same on 1 and on 4 ranks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import reframe as rfm
import reframe.utility.sanity as sn
from reframe.core.builtins import parameter, run_before, sanity_function

EXAMPLES = Path(os.environ.get("SORIX_DIST_EXAMPLES", Path(__file__).resolve().parents[2] / "examples"))
LOSS = 0.001506  # after 20 epochs, on any number of ranks; the last digits follow the CPU's kernels


@rfm.simple_test
class Digits(rfm.RunOnlyRegressionTest):
    """Trains for 20 epochs."""

    ranks = parameter([1, 4])
    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    executable = "sorix-dist"
    time_limit = "5m"

    @run_before("run")
    def start(self) -> None:
        """`sorix-dist run` starts the ranks inside of the allocation."""
        self.num_tasks = self.ranks
        self.executable = os.environ.get("SORIX_DIST", str(Path(sys.executable).parent / "sorix-dist"))
        self.executable_opts = ["run", "-n", str(self.ranks), str(EXAMPLES / "train.py")]

    @run_before("run")
    def without_launcher(self) -> None:
        """ReFrame's own launcher would start each rank's launcher."""
        from reframe.core.backends import getlauncher

        self.job.launcher = getlauncher("local")()

    @sanity_function
    def trained(self) -> bool:
        """The accuracy and the loss of the last epoch."""
        last = r"epoch 20  loss (?P<loss>\S+)  test accuracy (?P<accuracy>\S+)%"
        loss = sn.extractsingle(last, self.stdout, "loss", float)
        accuracy = sn.extractsingle(last, self.stdout, "accuracy", float)
        return sn.all([sn.assert_bounded(loss, LOSS - 1e-4, LOSS + 1e-4), sn.assert_ge(accuracy, 97)])
