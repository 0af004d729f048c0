"""Whole training programs: the losses, weights and stored values of one process on any number of ranks, or an error."""

from __future__ import annotations

import io
import math
import pickle
import warnings
from functools import cache

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm import run_threads
from sorix_dist.utils.data import DataLoader, Dataset
from tests.support.parallel import in_place, modules, papers  # noqa: F401 (they register programs)
from tests.support.parallel.everywhere import on_all_ranks
from tests.support.parallel.programs import PROGRAMS, results

pytestmark = pytest.mark.filterwarnings("ignore")


@cache
def of_one_process(name):
    return run_threads(results, 1, args=(name, True, None))[0]


def assert_close(found, wanted, tolerance):
    for ours in found:
        assert len(ours) == len(wanted)
        for a, b in zip(ours, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", PROGRAMS)
def test_several_ranks(name):
    if PROGRAMS[name].refused:
        on_all_ranks(lambda: results(name, False, None), (RuntimeError, ValueError), PROGRAMS[name].refused, 2)
        return
    for size in (1, 3):
        assert_close(run_threads(results, size, args=(name, False, None), timeout=60), of_one_process(name), 1e-10)


@pytest.mark.parametrize("name", PROGRAMS)
def test_reproducible_mode(name):
    """The same bits on every number of ranks, or an error."""
    if PROGRAMS[name].reproducible:
        on_all_ranks(lambda: results(name, False, 4), (RuntimeError, ValueError), PROGRAMS[name].reproducible, 2)
        return
    bits = set()
    for size in (1, 2):
        found = run_threads(results, size, args=(name, False, 4), timeout=60)
        assert_close(found, of_one_process(name), 1e-8)
        bits |= {tuple(x.tobytes() for x in ours) for ours in found}
    assert len(bits) == 1


@pytest.mark.parametrize("name", [name for name, program in PROGRAMS.items() if not program.refused])
def test_captured_steps(name):
    """The bits of the steps that run as they are, also after the replays that are audited."""
    for size in (1, 2):
        eager, captured = (
            run_threads(results, size, args=(name, False, None, captured, 4), timeout=60) for captured in (False, True)
        )
        for ours, wanted in zip(captured, eager, strict=True):
            assert [x.tobytes() for x in ours] == [x.tobytes() for x in wanted]


X = np.random.default_rng(0).standard_normal((3, 3))


def outputs():
    ((x, _),) = DataLoader(Dataset(X, X), batch_size=3)
    return sx.DistributedDataParallel(nn.Linear(3, 1).double())(x)[:, 0]


def divided_by_a_variable(x):
    n = len(x)
    return (x > 0).sum().pow(1.0) / n


def weighted_by_a_variable(x):
    n = len(x)
    loss, total = x.square().mean(), 0.0
    total += loss.item() * n
    return total


def weighted_in_a_nested_function(x):
    n = len(x)

    def mean():
        return x.square().mean() / n

    return mean()


def noise_of_a_length(x):
    n = len(x)
    return x + np.random.rand(n, 3)  # noqa: NPY002 (what users write)


def as_length(x):
    n = len(x)
    ones = np.ones(n * 2)
    longest = max(len(x), 2), float(len(x)), [*range(max(len(x), 0))]
    return x.reshape(n, -1)[..., None], ones[: n - 1], [*range(n)], n // 2, n == 3, longest


def test_lengths_in_variables_that_serve_as_lengths_are_not_said():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run_threads(lambda: as_length(outputs()) and None, 3)
    assert not [w for w in said if "len()" in str(w.message)]


def half(x):
    """With a call of len() that Python 3.11 makes faster after some calls."""
    return 0.5 * len(x)


def plateau():
    return optim.lr_scheduler.ReduceLROnPlateau(optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1))


@pytest.mark.parametrize("number", [float, bool, lambda x: x.item(), lambda x: f"{x:.3f}"])
def test_one_row_on_each_rank_is_no_number(number):
    on_all_ranks(lambda: number(outputs()), ValueError, "one of the 3 rows of the batch")


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_number_of_a_sum_over_rows_is_said_to_be_this_ranks(ranks):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run_threads(lambda: (outputs() > 0).sum().item(), ranks)
    assert any("item() of a sum over rows is this rank's part" in str(w.message) for w in said) == (ranks > 1)


@pytest.mark.parametrize(
    ("number", "warning"),
    [
        (lambda: float(outputs().detach().mean()), "float() of a mean over rows"),
        (lambda: f"{0 + outputs().mean().item():.3f}", "text shows a number of this rank's rows alone"),
        (lambda: 5.0 * len(outputs()), "len() counts this rank's rows, 1 of the 3"),
        (lambda: len(outputs()) + math.sqrt(4), "len() counts this rank's rows, 1 of the 3"),
        (lambda: math.log(len(outputs())), "len() counts this rank's rows, 1 of the 3"),
        (lambda: 1 / max(float(len(outputs())), 1), "len() counts this rank's rows, 1 of the 3"),
        (lambda: outputs().sum(0).data, "data of a sum over rows"),
        (lambda: len(outputs()) < 2, "len() counts this rank's rows, 1 of the 3"),
        (lambda: float(outputs().mean()), "float() of a mean over rows"),
        (lambda: [half(x) for x in [[1]] * 50 + [outputs()]], "len() counts this rank's rows, 1 of the 3"),
        (lambda: [].append(outputs().mean().item()), "item() of a mean over rows, kept in a list"),
        (lambda: [x.mean().item() for x in [outputs()]], "item() of a mean over rows, kept in a list"),
        (lambda: "%.3f" % outputs().mean().item(), "item() of a mean over rows"),  # noqa: UP031
        (lambda: np.random.default_rng(0).normal(size=(len(outputs()), 3)), "random numbers for the 1 rows of this"),
        (lambda: noise_of_a_length(outputs()), "random numbers for the 1 rows of this"),
        (lambda: divided_by_a_variable(outputs()), "len() counts this rank's rows, 1 of the 3"),
        (lambda: weighted_by_a_variable(outputs()), "len() counts this rank's rows, 1 of the 3"),
        (lambda: weighted_in_a_nested_function(outputs()), "len() counts this rank's rows, 1 of the 3"),
        (lambda: outputs().detach().mean(0).tolist(), "tolist() of a mean over rows"),
        (lambda: outputs().sum(0).numpy(), "numpy() of a sum over rows"),
        (lambda: np.asarray(outputs().sum(0)), "NumPy's array of a sum over rows"),
        (lambda: len((x := outputs())[x > 0]), "len() of what a mask has selected"),
        (lambda: sx.all_reduce(outputs().square().mean().detach()), "all_reduce of a mean over rows"),
        (lambda: str(outputs().mean(0)), "text of a mean over rows"),
        (lambda: float((x := outputs())[x > 0].shape[0]), "of what a mask has selected"),
        (lambda: int((x := outputs())[x > 0].numel()), "of what a mask has selected"),
        (lambda: sx.progress([0]).log(loss=outputs().mean()), "bar.log: loss is that of this rank's rows"),
        (lambda: sx.metrics.Mean().update(outputs().mean()), "the value of a metric is that of this rank's rows"),
        (
            lambda: sx.metrics.Mean().update(outputs().mean().item()),
            "the value of a metric is that of this rank's rows",
        ),
        (
            lambda: plateau().step(outputs().mean().item()),
            "ReduceLROnPlateau.step: metrics is that of this rank's rows",
        ),
        (lambda: sx.save({"best": outputs().mean().item()}, io.BytesIO()), "save: obj['best'] is that of this rank's"),
        (lambda: sx.save([outputs()], io.BytesIO()), "save: obj[0] is that of this rank's rows"),
        (lambda: (x := outputs()).topk(len(x))[0].sum(), "positions among the 3 rows of all ranks"),
        (lambda: (x := outputs(), i := sx.randperm(x.shape[0]), *(i[n : n + 1] for n in range(len(x)))), "positions"),
    ],
)
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_plain_number_of_this_ranks_rows_is_said(number, warning, ranks):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run_threads(number, ranks)
    assert any(warning in str(w.message) for w in said) == (ranks > 1)


def test_numbers_of_a_batch_are_plain_to_python():
    """Those of this rank, also in NumPy, in arithmetic and where they are kept; tensors of them count all rows."""

    def work():
        x = outputs()
        n = x.shape[0]
        total = sx.zeros(1)
        total = total + n + x.numel()
        half = pickle.loads(pickle.dumps((n / 2, n * 2)))
        assert {type(number) for number in half} == {int, float}
        everywhere = sx.all_reduce(n), sx.all_reduce((x > 9).sum().item() + n / 2)
        assert everywhere == (3, 1.5)
        return (
            n,
            np.zeros(n).size,
            [*range(n)],
            half,
            total.item(),
            math.ceil(n / 2),
            -n // 2,
            divmod(n + 1, 2),
            round(n / 3),
        )

    def wanted(n):
        return n, n, [*range(n)], (n / 2, n * 2), 6, math.ceil(n / 2), -n // 2, divmod(n + 1, 2), round(n / 3)

    for ranks in (1, 2):
        assert run_threads(work, ranks) == [wanted(n) for n in ((3,) if ranks == 1 else (1, 2))]


def test_numbers_of_a_batch_beside_its_tensors():
    def work():
        x = outputs()
        n, one = x.shape[0], (x * 0).sum() + 1
        for number in (n, -n, n // 2, n % 2, n**2, n**0.5, 7 - n, round(n * 0.4), math.floor(n / 2), *divmod(n, 2)):
            yield sx.global_value(one * number / n).item() * 3

    wanted = [3, -3, 1, 1, 9, 3**0.5, 4, 1, 1, 1, 1]
    for ranks in (1, 2, 3):
        for found in run_threads(lambda: [*work()], ranks):
            np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("count", "wanted"),
    [
        (lambda x: math.comb(x.shape[0], 2), 3),
        (lambda x: math.factorial(x.size(0)), 6),
        (lambda x: math.isqrt(x.numel() + 1), 2),
    ],
)
def test_functions_of_integers_count_all_rows_or_are_refused(count, wanted):
    assert run_threads(lambda: count(outputs()), 1) == [wanted]
    on_all_ranks(lambda: count(outputs()), RuntimeError, "give it sx.global_rows")


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: np.random.default_rng(0).standard_normal(x.shape),
        lambda x: np.random.default_rng(0).uniform(size=(x.shape[0], 3)),
        lambda x: np.random.randn(*x.shape),  # noqa: NPY002
        lambda x: np.random.randint(0, 5, x.size(0)),  # noqa: NPY002
        lambda x: np.random.rand(x.shape[0], 1) < 0.5,  # noqa: NPY002
    ],
)
def test_random_numbers_of_numpy_for_the_rows_of_one_rank_are_refused(draw):
    on_all_ranks(lambda: draw(outputs()), RuntimeError, "random numbers for the 1 rows of this rank, of 3")
    run_threads(lambda: draw(outputs()) is None, 1)


def test_functions_of_integers_beside_a_length():
    def work():
        n = outputs().shape[0]
        return [math.comb(i, 2) for i in range(n)], np.zeros(n).size

    assert run_threads(work, 3) == [([0], 1)] * 3


def test_int_of_a_share_of_the_batch():
    assert run_threads(lambda: int(outputs().shape[0] / 2), 1) == [1]
    on_all_ranks(lambda: int(outputs().shape[0] / 2), RuntimeError, "would differ on every number of ranks")
