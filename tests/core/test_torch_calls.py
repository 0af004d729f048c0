"""Calls as PyTorch's users type them: keywords, numbers of one element, casts, shared memory, missing names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.nn import functional as F
from sorix_dist.utils.checkpoint import checkpoint

X = sx.tensor([[1.0, 2.0], [3.0, 4.0]])

# What is called, and the same by position.
CALLS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "other": (lambda: X.add(other=1), lambda: X + 1),
    "input and other": (lambda: sx.mul(input=X, other=X), lambda: X * X),
    "alpha": (lambda: X.sub(X, alpha=0.5), lambda: X * 0.5),
    "alpha of a keyword": (lambda: sx.add(X, other=X, alpha=2), lambda: X * 3),
    "exponent": (lambda: sx.pow(X, exponent=2), lambda: X**2),
    "dims": (lambda: X.flip(dims=(0, 1)), lambda: X.flip(0, 1)),
    "permute by dims": (lambda: X.permute(dims=(1, 0)), lambda: X.T),
    "sizes": (lambda: sx.zeros(size=(2, 3)), lambda: sx.zeros(2, 3)),
    "expand to a size": (lambda: X[:, :1].expand(size=(2, 5)), lambda: X[:, :1].expand(2, 5)),
    "tensors": (lambda: sx.cat(tensors=[X, X], dim=1), lambda: sx.cat([X, X], 1)),
    "dtype": (lambda: X.sum(dtype=sx.float64), lambda: X.double().sum()),
    "dtype of a small sum": (lambda: X.int().sum(dtype=sx.int32), lambda: X.sum().int()),
    "softmax in another dtype": (lambda: sx.softmax(X, dim=1, dtype=sx.float64), lambda: sx.softmax(X.double(), 1)),
    "rounding": (lambda: X.div(2, rounding_mode="floor"), lambda: X // 2),
    "memory format": (lambda: X.clone(memory_format=None), lambda: X),
    "inplace": (lambda: F.relu(X - 2, inplace=True), lambda: F.relu(X - 2)),
    "to a dtype": (lambda: X.to("cpu", sx.float64, True, False), lambda: X.double()),
    "to another": (lambda: X.to(sx.ones(1).int(), non_blocking=True), lambda: X.int()),
    "several dims": (lambda: sx.logsumexp(X, (0, 1)), lambda: X.exp().sum().log()),
    "moved dims": (lambda: X.movedim((0, 1), (1, 0)), lambda: X.T),
    "nothing, then a matrix": (lambda: sx.cat([sx.tensor([]), X]), lambda: X),
    "einsum of a list": (lambda: sx.einsum("ij,jk", [X, X]), lambda: X @ X),
    "take_along_dim of a tensor": (lambda: X.take_along_dim(X.argsort(1), 1), lambda: X.sort(1).values),
    "shifts of a tensor": (lambda: X.long().bitwise_left_shift(2).bitwise_right_shift(1), lambda: X.long() * 2),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name: str) -> None:
    called, expected = (f() for f in CALLS[name])
    np.testing.assert_allclose(called.numpy(), expected.numpy(), rtol=1e-6)
    assert called.dtype == expected.dtype


CHANGES: dict[str, tuple[Callable[[Any], Any], list[float]]] = {
    "add_ with alpha": (lambda x: x.add_(x, alpha=-0.5), [0.5, -1.0, 2.0]),
    "sub_": (lambda x: x.sub_(1), [0, -3, 3]),
    "exp_ of log": (lambda x: x.abs_().log_().exp_(), [1, 2, 4]),
    "masked_fill_": (lambda x: x.masked_fill_(x < 0, 7), [1, 7, 4]),
    "scatter_": (lambda x: x.scatter_(0, sx.tensor([2]), 5.0), [1, -2, 5]),
    "index_add_": (lambda x: x.index_add_(0, sx.tensor([0, 0]), sx.ones(2)), [3, -2, 4]),
    "lerp_": (lambda x: x.lerp_(sx.zeros(3), 0.5), [0.5, -1, 2]),
    "pow_": (lambda x: x.pow_(2), [1, 4, 16]),
    "clip_": (lambda x: x.clip_(0, 3), [1, 0, 3]),
    "clamp_ by tensors": (lambda x: x.clamp_(sx.zeros(3), max=sx.tensor([0.5, 3, 3])), [0.5, 0, 3]),
    "uniform_": (lambda x: x.uniform_(2, 2), [2, 2, 2]),
    "normal_": (lambda x: x.normal_(3, 0), [3, 3, 3]),
    "bernoulli_": (lambda x: x.bernoulli_(1.0), [1, 1, 1]),
    "div_ rounded": (lambda x: x.div_(3, rounding_mode="floor"), [0, -1, 1]),
    "gt_": (lambda x: x.gt_(0), [1, 0, 1]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_in_place(name: str) -> None:
    change, expected = CHANGES[name]
    x = sx.tensor([1.0, -2.0, 4.0])
    array = x.numpy()
    assert change(x) is x
    np.testing.assert_allclose(array, expected, rtol=1e-6)
    parameter = sx.tensor([1.0, 2.0, 4.0], requires_grad=True)
    with pytest.raises(RuntimeError, match="In-place operations are not allowed"):
        change(parameter)
    with sx.no_grad():
        change(parameter)


@pytest.mark.parametrize("change", [lambda x: x.sqrt_(), lambda x: x.div_(2), lambda x: x.lerp_(X[0, 0], 0.5)])
def test_a_change_in_place_does_not_cut_a_result_to_integers(change: Callable[[Any], Any]) -> None:
    x = sx.tensor([4, 9])
    with pytest.raises(TypeError):
        change(x)
    assert x.tolist() == [4, 9]
    assert x.pow_(2).bitwise_and_(3).tolist() == [0, 1]


def test_new_tensors_like_another() -> None:
    x = X.double()
    assert x.new_zeros(2, 3).dtype == x.new_ones((2,)).dtype == x.new_tensor([1]).dtype == sx.float64
    assert x.new_full((2,), 7).tolist() == [7, 7]
    assert x.new_zeros(2, dtype=sx.int64).dtype == sx.int64
    assert X.type_as(x).dtype == sx.float64
    assert (x.nelement(), x.ndimension(), x.element_size(), x.T.is_contiguous()) == (4, 2, 8, False)


def test_a_keyword_after_too_few_operands_is_refused() -> None:
    with pytest.raises(TypeError, match="add: other is argument 2, and 2 were given"):
        X.add(1, other=1)
    with pytest.raises(TypeError, match="unexpected keyword"):
        X.add(1, beta=1)


def test_to_copies_if_told() -> None:
    assert X.to(sx.float32) is X
    assert X.type(sx.float64).dtype == "float64"
    copy = X.to("cpu", sx.float32, False, True)
    assert not np.shares_memory(copy.numpy(), X.numpy())
    assert not np.shares_memory(X.to(copy=True).numpy(), X.numpy())


def test_one_element_with_dimensions_is_a_number() -> None:
    t = sx.tensor([[1.5]])
    assert (float(t), int(t), f"{t:.2f}", "%.1f" % t) == (1.5, 1, "1.50", "1.5")  # noqa: UP031
    assert complex(t) == 1.5
    assert X.numel() == X.numel == 4
    assert sum(p.numel() for p in nn.Linear(2, 3).parameters()) == 9


def test_inference_mode() -> None:
    x = sx.tensor([1.0], requires_grad=True)
    with sx.inference_mode():
        assert not (x * 2).requires_grad
    with sx.inference_mode(mode=False):
        assert (x * 2).requires_grad
    assert not sx.inference_mode()(lambda: x * 2)().requires_grad


def test_memory_is_shared_by_dlpack() -> None:
    x = sx.from_dlpack(np.arange(3.0))
    array = np.from_dlpack(x)
    assert np.shares_memory(array, x.numpy())
    assert x.__dlpack_device__() == (1, 0)
    np.testing.assert_array_equal(sx.from_dlpack(x).numpy(), [0, 1, 2])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("svd", r"numpy\.linalg\.svd\(x\.numpy\(\)\)"), ("sofmax", "softmax"),
        ("set_num_threads", "sx.init"), ("zzz", "has no 'zzz'$"),
    ],
)  # fmt: skip
def test_missing_names_tell_the_nearest(name: str, words: str) -> None:
    with pytest.raises(AttributeError, match=words):
        getattr(sx, name)
    assert not hasattr(F, "relu7")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("from sorix_dist.nn.utils.rnn import pack_padded_sequence", "pad_sequence"),
        ("from sorix_dist.nn import SyncBatchNorm", "BatchNorm2d"),
        ("from sorix_dist.optim.lr_scheduler import StepLRR", "there is StepLR"),
        ("from sorix_dist.linalg import svd", r"numpy\.linalg\.svd"),
        ("from sorix_dist.nn.init import kaiming_uniform", "there is kaiming_uniform_"),
        ("from sorix_dist.metrics import F1Score", "there is f1_score"),
        ("from sorix_dist.parallel.comm_hooks import fp16_compres", "there is fp16_compress"),
        ("from sorix_dist.utils.tensorboard import SummaryWriter", r"sx.Recorder\(tensorboard=True\)"),
        ("from sorix_dist.distributed.elastic.multiprocessing.errors import record", "sorix-dist run"),
        ("import sorix_dist.distributed.nothing", "No module named 'sorix_dist.distributed.nothing'"),
        ("from sorix_dist.autograd import Variable", "the tensor itself"),
    ],
)
def test_imports_of_missing_names_tell_the_nearest(line: str, words: str) -> None:
    with pytest.raises(ImportError, match=words):
        exec(line)


def test_switches_of_gpu_libraries_have_no_effect() -> None:
    import sorix_dist.backends.cudnn as cudnn

    cudnn.benchmark = cudnn.deterministic = sx.backends.cuda.matmul.allow_tf32 = True
    assert sx.backends.mps.is_available() is sx.cuda.is_bf16_supported() is False
    assert sx.cuda.max_memory_allocated() == 0
    sx.cuda.empty_cache()
    with pytest.raises(RuntimeError, match="cuda is not available"):
        sx.cuda.set_device(0)
    assert str(sx.device("cuda", 1)) == "cuda:1"
    assert nn.Linear(2, 2).to(memory_format=sx.channels_last)(X.contiguous(memory_format=sx.contiguous_format)).ndim


def test_shapes_change_in_place() -> None:
    x = sx.ones(3, 2)
    assert x.unsqueeze_(0).transpose_(1, 2).shape == (1, 2, 3)
    assert x.squeeze_().t_().stride() == (2, 1)
    assert set(x.random_(5, 7).flatten().tolist()) <= {5, 6}
    with sx.no_grad(), pytest.raises(RuntimeError, match="unsqueeze_ can't change the shape of a trained tensor"):
        nn.Linear(2, 2).W.unsqueeze_(0)


def test_layers_have_torchs_names_where_the_layout_is_the_same() -> None:
    linear, table, norm = sx.nn.Linear(3, 2), sx.nn.Embedding(4, 3), sx.nn.BatchNorm1d(3)
    assert linear.bias is linear.b
    assert (table.weight, norm.weight, norm.bias) == (table.W, norm.gamma, norm.beta)
    assert (linear.in_features, linear.out_features) == (3, 2)
    table.weight = tied = sx.nn.Parameter(np.ones((4, 3), np.float32))
    assert table.W is tied
    assert [name for name, _ in table.named_parameters()] == ["W"]
    linear.bias = None
    assert linear.b is None
    assert linear(sx.ones(1, 3)).shape == (1, 2)
    for access in (lambda: linear.weight, lambda: setattr(linear, "weight", tied)):
        with pytest.raises(AttributeError, match=r"no 'weight', .* its 'W' is \(in, out\)"):
            access()
    with pytest.raises(AttributeError, match="'Linear' object has no attribute 'widht'"):
        _ = linear.widht


def test_the_next_of_parameters_is_the_first() -> None:
    model = sx.nn.Linear(3, 2)
    assert next(model.parameters()) is model.W
    parameters = model.parameters()
    assert [next(parameters), next(parameters), next(parameters, None)] == [model.W, model.b, None]
    assert len(list(parameters)) == 2


def test_init_takes_data() -> None:
    model = sx.nn.Linear(50, 40)
    sx.nn.init.normal_(model.W.data, 3.0, 0.1)
    sx.nn.init.constant_(model.bias.data, 2)
    assert abs(model.W.numpy().mean() - 3) < 0.02
    assert model.b.numpy().min() == 2
    with pytest.raises(TypeError, match="t must be a Tensor, got list"):
        sx.nn.init.zeros_([1.0])


def test_a_generator_is_a_stream_of_its_own() -> None:
    def drawn(generator: Any) -> list[Any]:
        draws = sx.rand(2, generator=generator), sx.randn(2, generator=generator), sx.randperm(9, generator=generator)
        split = sx.utils.data.random_split(range(7), [4, 3], generator=generator)
        return [x.tolist() for x in (*draws, sx.randint(0, 99, (3,), generator=generator), split[0].indices)]

    sx.manual_seed(1)
    before = sx.rand(3).tolist()
    sx.manual_seed(1)
    first = drawn(sx.Generator().manual_seed(5))
    assert first == drawn(sx.Generator("cpu").manual_seed(5)) != drawn(sx.Generator().manual_seed(6))
    assert sx.rand(3).tolist() == before
    assert sx.Generator().manual_seed(8).initial_seed() == 8
    assert drawn(np.random.default_rng(2)) == drawn(np.random.default_rng(2))
    assert sx.Generator().seed() != sx.Generator().seed()
    with pytest.raises(TypeError, match=r"generator must be sx.Generator\(\) .*got int"):
        sx.rand(2, generator=5)


def test_sequences_are_padded() -> None:
    given = [sx.ones(2, 3, requires_grad=True), sx.zeros(4, 3)]
    padded = sx.nn.utils.rnn.pad_sequence(given, batch_first=True, padding_value=-1)
    assert padded.shape == (2, 4, 3)
    assert padded[0, :, 0].tolist() == [1, 1, -1, -1]
    assert sx.nn.utils.rnn.pad_sequence(given).shape == (4, 2, 3)
    padded.sum().backward()
    assert given[0].grad.tolist() == np.ones((2, 3)).tolist()
    with pytest.raises(ValueError, match=r"differ in their first dimension only, got shapes \(2, 3\), \(2,\)"):
        sx.nn.utils.rnn.pad_sequence([sx.ones(2, 3), sx.ones(2)])


class Scaled(sx.autograd.Function):
    """scale * x * w, and x + 1, with a gradient of w that is 3 times too large on purpose."""

    @staticmethod
    def forward(ctx: Any, x: Any, w: Any, scale: float) -> Any:
        ctx.save_for_backward(x, w)
        ctx.scale = scale
        return x * w * scale, x + 1

    @staticmethod
    def backward(ctx: Any, g: Any, h: Any) -> Any:
        x, w = ctx.saved_tensors
        assert ctx.needs_input_grad == (True, True, False)
        return g * w * ctx.scale + h, g * x * (3 * ctx.scale), None


def test_functions_with_a_gradient_of_their_own() -> None:
    x, w = (sx.tensor(v, requires_grad=True) for v in ([1.0, 2.0], [3.0, 5.0]))
    product, moved = Scaled.apply(x, w, 2.0)
    assert product.tolist() == [6, 20]
    (product.sum() + (moved * moved).sum()).backward()
    assert x.grad.tolist() == [6 + 4, 10 + 6]
    assert w.grad.tolist() == [6, 12]
    with sx.no_grad():
        assert not Scaled.apply(x, w, 2.0)[0].requires_grad


def test_a_function_can_be_differentiated_twice() -> None:
    x = sx.tensor([2.0], requires_grad=True)
    w = sx.tensor([3.0], requires_grad=True)
    (g,) = sx.autograd.grad(Scaled.apply(x, w, 1.0)[0], x, create_graph=True)
    assert sx.autograd.grad(g * g, w)[0].item() == 6


def test_an_output_that_has_no_gradient() -> None:
    class Parts(sx.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            whole = x.floor()
            ctx.mark_non_differentiable(whole)
            return x - whole, whole

        @staticmethod
        def backward(ctx: Any, g: Any, of_whole: Any) -> Any:
            assert of_whole.tolist() == [0, 0]
            return g

    x = sx.tensor([2.25, -1.5], requires_grad=True)
    rest, whole = Parts.apply(x)
    assert (rest.tolist(), whole.tolist()) == ([0.25, 0.5], [2, -2])
    assert rest.requires_grad
    assert not whole.requires_grad
    (rest * 3 + whole).sum().backward()
    assert x.grad.tolist() == [3, 3]


def test_a_function_must_answer_for_each_input() -> None:
    class Lacking(sx.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, y: Any) -> Any:
            return x + y

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g

    x = sx.tensor([2.0], requires_grad=True)
    with pytest.raises(RuntimeError, match=r"Lacking\.backward must return 2 gradients, one for each input, got 1"):
        Lacking.apply(x, x).sum().backward()


def model() -> nn.Sequential:
    sx.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 3))


def gradients(run: Callable[[Any, Any], Any]) -> list[Any]:
    module = model()
    x = sx.tensor(np.cos(np.arange(20.0)).reshape(5, 4).astype(np.float32), requires_grad=True)
    out = run(module, x)
    (out * sx.randn(5, 3)).sum().backward()
    return [out.numpy(), x.grad.numpy(), *(p.grad.numpy() for p in module.parameters())]


def noisy(module: Any, x: Any) -> Any:
    return module(x) * sx.randn(5, 3)


@pytest.mark.parametrize("function", [lambda module, x: module(x), noisy])
def test_checkpointing_changes_no_bit(function: Callable[[Any, Any], Any]) -> None:
    """With dropout and random numbers, which come out the same when the function is run again."""
    plain = gradients(function)
    saved = gradients(lambda module, x: checkpoint(function, module, x, use_reentrant=False))
    for one, other in zip(plain, saved, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_checkpointed_graph_keeps_no_arrays() -> None:
    x = sx.tensor(np.ones((4, 4), np.float32), requires_grad=True)
    out = checkpoint(lambda x: (x.exp() * 2).sin().sum(), x)
    rules = [rule for rule in out.origin.rules if rule is not None]
    assert all(not hasattr(rule, "__closure__") for rule in rules)
    out.backward(retain_graph=True)
    out.backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * np.cos(2 * np.e) * 2 * np.e, rtol=1e-5)


def test_checkpointing_refuses_what_changes_and_second_derivatives() -> None:
    x, times = sx.tensor([2.0], requires_grad=True), iter([1, 2])
    changing = checkpoint(lambda x: sx.stack([x.exp() for _ in range(next(times))]).sum(), x)
    with pytest.raises(RuntimeError, match="must compute the same each time"):
        changing.backward()
    for function in (lambda x: x**3, sx.nn.Linear(1, 1)):
        with pytest.raises(RuntimeError, match="no second derivatives"):
            sx.autograd.grad(checkpoint(function, x.view(1, 1)).sum(), x, create_graph=True)
    with sx.no_grad():
        assert checkpoint(lambda x: x * 2, x).item() == 4
