"""The doctor compares OpenBLAS's kernels where it could have chosen others."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import pytest

from sorix_dist.launch import doctor
from sorix_dist.launch.doctor import Finding


def findings(monkeypatch: pytest.MonkeyPatch, chosen: str, seconds: Mapping[str, list[float]]) -> list[Finding]:
    """What is said where OpenBLAS chooses one kernel, and these have those times, one measurement after the other."""
    times: dict[str, Iterator[float]] = {kernel: iter(each) for kernel, each in seconds.items()}

    def measured(environ: Mapping[str, str]) -> tuple[str, float]:
        wanted = environ.get(doctor.KERNEL_CHOICE, chosen)
        kernel = wanted if wanted in times else chosen
        return kernel, next(times[kernel])

    monkeypatch.setattr(doctor, "_time_product", measured)
    return [*doctor.kernels({})]


def test_faster_kernels_are_named_with_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = findings(monkeypatch, "SkylakeX", {"SkylakeX": [5.0, 4.0], "Haswell": [9.0, 3.6]})
    assert found.level == "ok"
    assert found.text.startswith("Haswell takes 0.90 of the time of SkylakeX")
    assert found.mend.startswith("OPENBLAS_CORETYPE=Haswell in the environment of every rank")


def test_kernels_that_are_hardly_faster_are_not_worth_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = findings(monkeypatch, "Cooperlake", {"Cooperlake": [4.0, 9.0], "Haswell": [3.9, 9.0]})
    assert (found.level, found.mend) == ("ok", "")
    assert found.text.startswith("Haswell takes 0.97 of the time of Cooperlake")


def test_nothing_is_said_where_there_is_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings(monkeypatch, "Haswell", {"Haswell": [1.0]}) == []
    assert findings(monkeypatch, "neoversen1", {"neoversen1": [1.0]}) == []
    assert findings(monkeypatch, "SkylakeX", {"SkylakeX": [1.0, 1.0]}) == []  # built without Haswell's
    assert [*doctor.kernels({doctor.KERNEL_CHOICE: "SkylakeX"})] == []


def test_a_choice_is_measured_in_a_process_of_its_own() -> None:
    kernel, seconds = doctor._time_product(os.environ)
    assert kernel
    assert seconds > 0
    for found in doctor.kernels(os.environ):
        assert found.level == "ok"
        assert found.data["chosen"] == kernel
