"""`sorix-dist plan`: how fast a script would train on hosts that one does not have yet."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sorix_dist.cli.parser import Parser, add_script, bandwidth, check_output, check_script, duration, positive, under
from sorix_dist.comm.blas import VARIABLES
from sorix_dist.launch import LaunchError
from sorix_dist.launch.command import command
from sorix_dist.launch.run import run
from sorix_dist.parallel.comm_hooks import Matrix
from sorix_dist.train.cost_model import METHODS, Border, Layout, Link, Machine, PerRows, Step, predict
from sorix_dist.train.plots import Curve, Panels, as_text, draw

HOSTS = [1 << power for power in range(11)]  # the rows of the table
SECONDS = 4.0  # how long steps are measured
LOG = ["ms a step"]  # the panels with a logarithmic axis


class _Options(argparse.Action):
    """Options may follow the script too; what follows `--` is the script's."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        end = values.index("--") if "--" in values else len(values)
        options = Parser(prog=parser.prog, add_help=False)
        _add_options(options)
        _, unknown = options.parse_known_args(values[:end], namespace)
        if unknown:
            parser.error(f"there is no option {unknown[0]!r}: arguments of the script follow after `--`")
        namespace.arguments = values[end + 1 :]


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Adds this subcommand."""
    parser = subparsers.add_parser(
        "plan",
        help="predict how fast a script trains on many hosts",
        description="Measure the first steps of a training script on one rank here, or read the trace of `sorix-dist "
        "run --profile`, and predict the time of a step and the efficiency on 1 to 1,024 hosts: with exact sums, fp16, "
        "PowerSGD and LocalSGD. The script ends after some seconds; it reads and writes no checkpoint.",
        usage="sorix-dist plan --link BANDWIDTH [OPTION ...] (SCRIPT | -m MODULE | TRACE.json) [OPTION ...] "
        "[-- ARGUMENT ...]",
    )
    _add_options(parser)
    add_script(parser, _Options)
    parser.set_defaults(main=main)


def _add_options(parser: Parser) -> None:
    parser.add_argument("--hosts", type=positive, default=4, help="number of hosts (default: 4)")
    parser.add_argument("--ranks-per-host", type=positive, default=1, metavar="N", help="ranks of each (default: 1)")
    parser.add_argument(
        "--link", type=bandwidth, metavar="BANDWIDTH", help="of a host's link, such as 10gbit or 25GB/s"
    )
    parser.add_argument("--latency", type=duration, default=50e-6, help="of a message, such as 20us (default: 50us)")
    parser.add_argument(
        "--memory",
        type=bandwidth,
        metavar="BANDWIDTH",
        help="that all ranks of a host have together, such as 200GB/s (default: that of this machine)",
    )
    parser.add_argument("--threads", type=positive, default=1, help="BLAS threads of a rank (default: 1)")
    parser.add_argument("--every", type=positive, default=16, help="steps between the sums of LocalSGD (default: 16)")
    parser.add_argument(
        "--scaling",
        choices=("strong", "weak"),
        default="strong",
        help="strong: the script's global batch on any number of ranks (default); weak: as many rows on each rank",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write what was measured and all predictions")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the chart as a PNG, PDF or SVG")


def main(arguments: Any) -> int:
    """Measures, predicts and prints; returns 0, or the script's exit code if it fails."""
    if arguments.link is None:
        raise LaunchError("--link is missing: give the bandwidth of a host's link, such as --link 10gbit")
    for option, path in (("--json", arguments.json), ("--output", arguments.output)):
        check_output(option, path)
    check_script(arguments)
    with tempfile.TemporaryDirectory(prefix="sorix_dist-plan-") as folder:
        path = Path(folder, "measured.json")
        if code := _measure(arguments, path):
            return code
        found = Predictions(arguments, *figures(json.loads(path.read_text(encoding="utf-8"))))
    if arguments.json:
        arguments.json.write_text(json.dumps(found.record(), indent=1) + "\n", encoding="utf-8")
    if arguments.output:
        try:
            draw(found.panels(), arguments.output, LOG, "hosts")
        except (ValueError, ImportError) as error:
            raise LaunchError(str(error)) from error
    print("\n".join(found.lines()))
    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    print("\n" + as_text(found.panels(), width, axis_name="hosts", log=LOG))
    return 0


def _measure(arguments: Any, path: Path) -> int:
    """Measures in a process of one rank, with as many BLAS threads as a rank shall have; returns its exit code."""
    program = under("planned", arguments, path=str(path), seconds=SECONDS)
    threads = dict.fromkeys(VARIABLES, str(arguments.threads))
    return run(command(program, 1, env={**threads, "SORIX_DIST_COMPILE": "off"})).code


def figures(measured: dict[str, Any]) -> tuple[Step, Machine]:
    """The step and the machine of a file that `--json` or `train.planned` has written."""
    step = measured["step"]
    times = {name: PerRows(*step[name]) for name in ("forward", "backward")}
    borders = tuple(Border(*border) for border in step["borders"])
    matrices = tuple(Matrix(*matrix) for matrix in step["matrices"])
    return Step(**{**step, **times, "borders": borders, "matrices": matrices}), Machine(**measured["machine"])


@dataclass(frozen=True)
class Predictions:
    """Predictions for a step, whose figures are those of one rank here."""

    options: Any
    step: Step
    machine: Machine

    def seconds(self, hosts: int) -> dict[str, float]:
        """The time of a step, by method."""
        layout = Layout(hosts, self.options.ranks_per_host)
        machine = self.machine if self.options.memory is None else self._with_memory(self.options.memory)
        link, step = Link(self.options.latency, 1 / self.options.link), self._step(layout)
        return {method: predict(step, layout, link, machine, method, self.options.every) for method in METHODS}

    def _with_memory(self, rate: float) -> Machine:
        return replace(self.machine, core_memory=min(self.machine.core_memory, rate), host_memory=rate)

    def _step(self, layout: Layout) -> Step:
        """The step; with weak scaling its global batch grows with the ranks."""
        rows = self.step.rows * (layout.ranks if self.options.scaling == "weak" else 1)
        return replace(self.step, rows=rows)

    def efficiency(self, hosts: int, seconds: float) -> float:
        """Strong: the time of one rank by that of all ranks together. Weak: the time of one rank by that of each."""
        ranks = 1 if self.options.scaling == "weak" else hosts * self.options.ranks_per_host
        return self.step.alone(self.step.rows) / ranks / seconds

    def hosts(self) -> list[int]:
        """The hosts of the table: `HOSTS`, and those asked for."""
        return sorted({*HOSTS, self.options.hosts})

    def lines(self) -> Iterator[str]:
        """What was measured, the table, and the answer."""
        step, machine, options, ms = self.step, self.machine, self.options, 1e3
        forward, backward = (times.of(step.rows) * ms for times in (step.forward, step.backward))
        fixed = (step.forward.fixed + step.backward.fixed) * ms
        yield (
            f"one rank here, {step.rows} rows: {_short(step.alone(step.rows) * ms)} ms a step (forward "
            f"{_short(forward)}, backward {_short(backward)}, {_short(fixed)} of these for any number of rows; update "
            f"{_short(step.update * ms)}, all else {_short(step.rest * ms)})"
        )
        memory = options.memory or machine.host_memory
        yield (
            f"gradients {step.nbytes / 1e6:,.3g} MB; a message costs a rank {machine.message * 1e6:.0f} us and "
            f"{machine.message_byte * 1e12:.0f} us/MB; memory of a host {memory / 1e9:.0f} GB/s"
        )
        batch = f"{step.rows} rows in all" if options.scaling == "strong" else f"{step.rows} rows on each rank"
        ranks = _counted(options.ranks_per_host, "rank")
        link = f"{options.link * 8e-9:g} Gbit/s, {options.latency * 1e6:g} us"
        yield f"predicted: {ranks} a host, {link}, {batch}: ms a step (efficiency)"
        yield ""
        heads = [*METHODS[:-1], f"LocalSGD/{options.every}"]
        yield f"  {'hosts':>5} {'ranks':>6}" + "".join(f"{head:>18}" for head in heads) + "   best"
        for hosts in self.hosts():
            times = self.seconds(hosts)
            cells = [f"{_short(t * ms)} ({_short(100 * self.efficiency(hosts, t))}%)" for t in times.values()]
            marker = ">" if hosts == options.hosts else " "
            best = min(times, key=lambda method: times[method])
            yield (
                f"{marker} {hosts:>5} {hosts * options.ranks_per_host:>6}"
                + "".join(f"{c:>18}" for c in cells)
                + f"   {best}"
            )
        yield ""
        yield from self._answer()

    def _answer(self) -> Iterator[str]:
        times = self.seconds(self.options.hosts)
        best = min(times, key=lambda method: times[method])
        exact, most = times["exact"], max(self.hosts(), key=lambda hosts: self._speed(hosts))
        ranks = self.options.hosts * self.options.ranks_per_host
        rows = self._step(Layout(self.options.hosts, self.options.ranks_per_host)).rows
        yield (
            f"{_counted(self.options.hosts, 'host')}, {_counted(ranks, 'rank')}: exact {_short(exact * 1e3)} ms a "
            f"step, {rows / exact:,.0f} rows/s; best is {best}, {_short(times[best] * 1e3)} ms. Exact sums are fastest "
            f"on {_counted(most, 'host')}."
        )
        if ranks > rows:
            yield f"{ranks - rows} ranks have no row of a batch of {rows}: give a larger batch, or fewer ranks."

    def _speed(self, hosts: int) -> float:
        """Rows per second with exact sums; of equal ones, fewer hosts are better."""
        layout = Layout(hosts, self.options.ranks_per_host)
        return round(self._step(layout).rows / self.seconds(hosts)["exact"], 6)

    def panels(self) -> Panels:
        """The chart."""
        hosts = self.hosts()
        times = [self.seconds(count) for count in hosts]
        by_method = {method: [each[method] for each in times] for method in METHODS}
        return {
            "ms a step": [Curve(m, "ms", hosts, [1e3 * t for t in found]) for m, found in by_method.items()],
            "efficiency, %": [
                Curve(m, "%", hosts, [100 * self.efficiency(h, t) for h, t in zip(hosts, found)])
                for m, found in by_method.items()
            ],
        }

    def record(self) -> dict[str, Any]:
        """Everything, in seconds and bytes."""
        names = ("hosts", "ranks_per_host", "link", "latency", "memory", "threads", "every", "scaling")
        return {
            "options": {name: getattr(self.options, name) for name in names},
            "step": asdict(self.step),
            "machine": asdict(self.machine),
            "predicted": [{"hosts": hosts, "seconds": self.seconds(hosts)} for hosts in self.hosts()],
        }


def _short(number: float) -> str:
    """Three digits, or all before the point."""
    return f"{number:,.0f}" if number >= 999.5 else f"{number:.3g}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number > 1)}"
