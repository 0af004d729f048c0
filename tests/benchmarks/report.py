"""The results in words: plain tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.benchmarks.words import measured_on, page, short, table, time, workloads

# What the measurements are meant to reach at most.
TAPE = 3.0  # microseconds that a node costs beside its operation, forward and backward together
CONVOLUTION = 1.8  # times its matrix products
MEMORY = 0.5  # times the peak of sorix

Results = dict[str, Any]


def report(results: Results) -> str:
    """All that `run.measure` has found."""
    parts = (_machine, _tape, _convolution, _steps, _reproducible, _synchronisation, _handshake, _memory, workloads)
    return page(part(results) for part in parts)


def report_phases(results: Results) -> str:
    """What `run.phases` has found."""
    parts = results["parts"]
    whole = parts["step"]["median"]
    rows = [("", "microseconds", "of the step")]
    for stage in (name for name in parts if ":" not in name):
        inside = {name: found for name, found in parts.items() if name.startswith(f"{stage}: ")}
        rows.append((stage, time(parts[stage], 1e6), f"{parts[stage]['median'] / whole:.1%}"))
        rows += [
            (f"  {name.partition(': ')[2]}", time(found, 1e6), f"{found['median'] / whole:.1%}")
            for name, found in inside.items()
        ]
        if inside:
            rest = parts[stage]["median"] - sum(found["median"] for found in inside.values())
            rows.append(("  all else", short(rest * 1e6), f"{rest / whole:.1%}"))
    functions = [("", "calls a step", "microseconds of its own a step, profiled")]
    functions += [(where, f"{calls:.1f}", short(own * 1e6)) for where, calls, own in results["functions"]]
    step = f"A training step of {results['workload']}, on {results['ranks']} rank(s), as rank 0 sees it"
    profile = "Where Python's profiler sees the time"
    return page([_machine(results), [step, *table(rows)], [profile, *table(functions)]])


def _machine(results: Results) -> Iterator[str]:
    yield from measured_on(results)
    yield "Times are medians and, in brackets, 10th percentiles; ratios are of 10th percentiles."


def _tape(results: Results) -> Iterator[str]:
    tape = results["tape"]
    yield f"Tape: microseconds per node, a chain of {tape['nodes']} products of 8 numbers"
    rows: list[tuple[str, ...]] = [("", "record", "walk back", "NumPy's product", "beyond two products")]
    for mode, found in tape["collector"].items():
        times = (time(found[name], 1e6) for name in ("record", "walk", "numpy"))
        overhead = found["overhead"] * 1e6
        rows.append((f"garbage collector {mode}", *times, f"{overhead:.2f}  {_verdict(overhead, TAPE)}"))
    yield from table(rows)


def _convolution(results: Results) -> Iterator[str]:
    yield "Convolution 3x3 of 128 images, forward and both gradients: ms, 1 thread"
    rows = [("", "convolution", "its products alone", "ratio")]
    for name, found in results["convolution"].items():
        times = (time(found[kind], 1e3) for kind in ("convolution", "products"))
        rows.append((name, *times, f"{found['ratio']:.2f}  {_verdict(found['ratio'], CONVOLUTION)}"))
    yield from table(rows)


def _steps(results: Results) -> Iterator[str]:
    yield "Training step: ms, 1 BLAS thread a rank; the share is that of the matrix products in the step"
    rows = [("", "ranks", "step", "its products alone", "share", "speed-up")]
    for name, by_ranks in results["steps"].items():
        first = next(iter(by_ranks.values()))["step"]["p10"]
        for ranks, found in by_ranks.items():
            step, products = found["step"], found["products"]
            share = f"{products['p10'] / step['p10']:.0%}"
            rows.append((name, ranks, time(step, 1e3), time(products, 1e3), share, f"{first / step['p10']:.2f}"))
    yield from table(rows)


def _synchronisation(results: Results) -> Iterator[str]:
    yield "DistributedDataParallel: microseconds of the synchronisation alone"
    rows = [("", "ranks", "synchronisation", "an MPI all-reduce of as many numbers")]
    for name, by_ranks in results["synchronisation"].items():
        for ranks, found in by_ranks.items():
            if ranks != "1" or len(by_ranks) == 1:
                rows.append((name, ranks, time(found["synchronisation"], 1e6), time(found["all_reduce"], 1e6)))
    yield from table(rows)


def _reproducible(results: Results) -> Iterator[str]:
    yield "Reproducible mode, 8 virtual shards: ms, and its price beside the step above"
    rows = [("", "ranks", "step", "price")]
    for name, by_ranks in results["reproducible steps"].items():
        for ranks, found in by_ranks.items():
            step, fast = found["step"], results["steps"][name][ranks]["step"]
            rows.append((name, ranks, time(step, 1e3), f"{step['p10'] / fast['p10']:.2f}x"))
    yield from table(rows)


def _handshake(results: Results) -> Iterator[str]:
    yield "Handshake of the ranks at the end of a backward: microseconds beyond two barriers, and its share of a step"
    rows = [("", "ranks", "agreement", "two barriers", "handshake", "share of a step")]
    for name, by_ranks in results["synchronisation"].items():
        for ranks, found in by_ranks.items():
            if ranks != "1" and name in results["steps"]:
                cost = found["agreement"]["p10"] - found["barriers"]["p10"]
                share = f"{cost / results['steps'][name][ranks]['step']['p10']:.1%}"
                times = (time(found[kind], 1e6) for kind in ("agreement", "barriers"))
                rows.append((name, ranks, *times, f"{cost * 1e6:.1f}", share))
    yield from table(rows)


def _memory(results: Results) -> Iterator[str]:
    memory = results["memory"]
    yield "Memory: MB of NumPy and Python objects while W1 is trained, 1 process"
    rows = [("", "between steps", "peak")]
    for name, found in memory.items():
        rows.append((f"{name} {found['version']}", f"{found['between'] / 1e6:.1f}", f"{found['peak'] / 1e6:.1f}"))
    yield from table(rows)
    if "sorix" in memory:
        ratio = memory["sorix_dist"]["peak"] / memory["sorix"]["peak"]
        yield f"  peak of sorix's: {ratio:.2f}  {_verdict(ratio, MEMORY)}"
    else:
        yield "  (no sorix here to compare with; name an interpreter that has it with --sorix)"


def _verdict(value: float, target: float) -> str:
    return f"(target {target:g}: {'met' if value <= target else 'missed'})"
