"""The results of a comparison in words: plain tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.benchmarks.compare.contestants import OURS, crowd, field
from tests.benchmarks.words import measured_on, page, short, table, time, workloads

Results = dict[str, Any]
KINDS = {"backward": "as a backward sums", "all_reduce": "all-reduce", "memcpy": "copying as much, each rank"}


def tables(results: Results) -> str:
    """All that `contest.compare` has found."""
    parts = (_machine, _steps, _ratios, _bounds, _crowded, _sums, _memory, _presence, workloads)
    return page(part(results) for part in parts)


def _machine(results: Results) -> Iterator[str]:
    yield from measured_on(results)
    others = [f"{library} {version}" for library, version in results["libraries"].items() if library != OURS]
    yield f"Beside {', '.join(others) or 'nobody else'}; {results['date']}, {results['seconds']} s"
    yield from (f"Left out: {name} ({why})" for name, why in results["left out"].items())
    yield "A rank has one thread. Times are medians and, in brackets, 10th percentiles; ratios are of 10th percentiles."


def _steps(results: Results) -> Iterator[str]:
    yield "Training step: ms"
    yield from _by_workload(results, lambda found, name: time(found["step"][name], 1e3))


def _ratios(results: Results) -> Iterator[str]:
    first = field(results["ranks"])[0].name
    yield f"Times as long as {first}"
    yield from _by_workload(results, lambda found, name: f"{_p10(found, name) / _p10(found, first):.2f}")


def _bounds(results: Results) -> Iterator[str]:
    """What the matrix products and the scaling are."""
    ranks, training = results["ranks"], results["training"]
    first, one, _, _, _, ddp, torch = (contestant.name for contestant in field(ranks)[:7])
    yield f"Matrix products alone, and scaling from 1 to {ranks} ranks (weak: as many rows on each rank as on one)"
    rows = [("", *training)]
    for name in (first, one):
        rows.append((f"products, {name}: ms", *(time(found["products"][name], 1e3) for found in training.values())))
    for name in (first, one):
        shares = (_p10(found, name, "products") / _p10(found, name) for found in training.values())
        rows.append((f"share of a step, {name}", *(f"{share:.0%}" for share in shares)))
    for many, single, who in ((first, one, OURS), (ddp, torch, "torch DDP")):
        both = [{many, single} <= found["step"].keys() for found in training.values()]
        for kind, act, size in (("strong", "step", 1), ("weak", "weak step", ranks)):
            cells = [
                f"{size * _p10(found, single) / _p10(found, many, act):.2f}x" if there else ""
                for there, found in zip(both, training.values(), strict=True)
            ]
            rows += [(f"{who}: {kind} scaling", *cells)] if any(both) else []
    yield from table(rows)


def _crowded(results: Results) -> Iterator[str]:
    found = {"step": results["crowded"]}
    if found["step"]:
        names = [contestant.name for contestant in crowd(results["ranks"]) if contestant.name in found["step"]]
        yield f"More ranks than cores, W1: ms, and times as long as {names[0]}"
        yield from table(
            [
                (name, time(found["step"][name], 1e3), f"{_p10(found, name) / _p10(found, names[0]):.2f}")
                for name in names
            ]
        )


def _sums(results: Results) -> Iterator[str]:
    sums = results["sums"]
    if sums:
        yield f"Sum over {results['ranks']} ranks: microseconds"
        columns = [(act, name) for act, names in next(iter(sums.values())).items() for name in names]
        rows = [("", *(f"{name.partition(',')[0]}: {KINDS[act]}" for act, name in columns))]
        for size, found in sums.items():
            rows.append((_bytes(int(size)), *(time(found[act][name], 1e6) for act, name in columns)))
        yield from table(rows)


def _memory(results: Results) -> Iterator[str]:
    memory = results["memory"]
    if memory:
        yield "Memory of a rank while it trains: MB, what ranks share in equal parts (PSS), at most"
        names = list(next(iter(memory.values())))
        rows = [("", *memory), *((name, *(f"{found[name] / 1e6:.0f}" for found in memory.values())) for name in names)]
        if len(names) > 1:
            shares = (found[names[0]] / found[names[1]] for found in memory.values())
            rows.append((f"share of {names[1]}", *(f"{share:.0%}" for share in shares)))
        yield from table(rows)


def _presence(results: Results) -> Iterator[str]:
    yield "Import: seconds.  Environment with nothing else: MB"
    yield "  " + ", ".join(f"{name} {short(found['median'])}" for name, found in results["imports"].items())
    yield "  " + ", ".join(f"{name} {size / 1e6:.0f}" for name, size in results["installed"].items())


def _by_workload(results: Results, cell: Any) -> Iterator[str]:
    training = results["training"]
    names = [each.name for each in field(results["ranks"])]
    rows = [("", *training)]
    for name in names:
        cells = [cell(found, name) if name in found["step"] else "" for found in training.values()]
        if any(cells):
            rows.append((name, *cells))
    yield from table(rows)


def _p10(found: Results, name: str, act: str = "step") -> float:
    return float(found[act][name]["p10"])


def _bytes(size: int) -> str:
    return f"{size >> 20} MB" if size >= 1 << 20 else f"{size >> 10} KB"
