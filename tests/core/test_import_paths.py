"""The paths that a sorix script imports from, and the names that it finds at the top level."""

from __future__ import annotations

import importlib
import subprocess
import sys

import numpy as np
import pytest

import sorix_dist as sx

TOP = (  # noqa: SIM905 (a list of words)
    """
    Tensor tensor no_grad is_grad_enabled set_grad_enabled device Size manual_seed save load
    autograd nn optim utils cuda
    float32 float64 float16 int32 int64 int16 int8 uint8 bool_ float double half int long short byte bool
    zeros ones empty full eye diag arange linspace logspace rand randn randint randperm zeros_like ones_like empty_like
    full_like as_tensor from_numpy cat stack reshape transpose squeeze unsqueeze flatten t unbind split chunk repeat
    permute where gather add sub mul div matmul pow sin cos tanh exp log sqrt abs absolute sign round floor ceil clamp
    mean sum sigmoid softmax argmax argmin
"""
).split()


@pytest.mark.parametrize("name", TOP)
def test_names_at_the_top(name: str) -> None:
    assert hasattr(sx, name)
    assert name in sx.__all__


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("tensor", "Tensor"), ("tensor", "tensor"), ("tensor", "no_grad"), ("tensor", "float32"), ("tensor", "Size"),
        ("autograd", "grad"), ("cuda", "is_available"), ("nn", "Linear"), ("optim", "SGD"),
    ],
)  # fmt: skip
def test_paths(module: str, name: str) -> None:
    found = getattr(importlib.import_module(f"sorix_dist.{module}"), name)
    public = getattr({"is_available": sx.cuda, "Linear": sx.nn, "SGD": sx.optim}.get(name, sx), name)
    assert found is public  # of a class, isinstance holds for both
    assert found == np.float32 if name == "float32" else found.__name__ == name


def test_the_function_tensor_stays_a_function_after_its_module_is_imported() -> None:
    script = "from sorix_dist.tensor import Tensor; import sorix_dist as sx; print(type(sx.tensor([1.0])) is Tensor)"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert answer.stdout.split() == ["True"]


def test_there_is_no_gpu() -> None:
    assert sx.cuda.is_available() is False
    assert sx.cuda.device_count() == 0
    assert not sx.accelerator.is_available()
    assert sx.accelerator.current_accelerator() is None
