"""Any loss and any layer gives one process's step on any number of ranks, or is refused on all of them."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.autograd import grad
from sorix_dist.comm import run_threads
from sorix_dist.nn import functional as F
from sorix_dist.utils.data import DataLoader, Dataset
from tests.support.parallel.any_loss import CASES, net, step
from tests.support.parallel.everywhere import on_all_ranks

pytestmark = [
    pytest.mark.filterwarnings("ignore:.* works on the rows of the whole batch"),
    pytest.mark.filterwarnings("ignore:every rank was given the same"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:numpy"),
]
LOADED = [(8, 1), (8, 2), (8, 3), (8, 5), (2, 3)]  # rows, ranks
CUTS = [[8], [4, 4], [5, 3], [0, 8], [1, 0, 7], [0, 2, 5, 0, 1]]
X = np.random.default_rng(0).standard_normal((7, 3))
Y = X[:, :1] ** 2


@cache
def alone(name, rows):
    return run_threads(step, 1, args=(name, rows, "bare"))[0]


def assert_as_alone(found, name, rows, tolerance=1e-12):
    wanted = alone(name, rows)
    for ours in found:
        assert ours.keys() == wanted.keys()
        for key, value in wanted.items():
            assert (value is None) == (ours[key] is None), key
            if value is not None:
                scale = max(1.0, np.abs(value).max(initial=0))
                np.testing.assert_allclose(ours[key] / scale, value / scale, rtol=0, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("name", CASES)
def test_rows_of_a_loader(name):
    for rows, size in LOADED:
        assert_as_alone(run_threads(step, size, args=(name, rows, "loader"), timeout=60), name, rows)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.untagged])
def test_rows_that_no_loader_tagged(name):
    for counts in CUTS:
        found = run_threads(step, len(counts), args=(name, sum(counts), "cut", counts), timeout=60)
        assert_as_alone(found, name, sum(counts))


@pytest.mark.parametrize("name", CASES)
def test_reproducible_mode(name):
    """The same bits on every number of ranks, or refused on each."""
    possible = CASES[name].reproducible
    for rows in (8, 3):
        bits = set()
        for size in (1, 2, 4):

            def work(rows=rows):
                return step(name, rows, "loader", shards=4)

            if possible == "no forward" or (possible == "one process" and size > 1):
                on_all_ranks(work, RuntimeError, "reproducible mode|synchronised by no wrapper", size)
                continue
            found = run_threads(work, size, timeout=60)
            assert_as_alone(found, name, rows, 1e-10)
            bits |= {tuple((k, v if v is None else v.tobytes()) for k, v in ours.items()) for ours in found}
        assert len(bits) == 1 or possible != "yes"


def batches(size=4):
    return DataLoader(Dataset(X, Y), batch_size=size)


def batch():
    (found,) = batches(7)
    return found


def model(make=None):
    sx.manual_seed(3)
    return sx.DistributedDataParallel((make or net(1))().double())


def total_gradient(of):
    return sum(float(np.abs(p.grad.numpy()).sum()) for p in of.parameters() if p.grad is not None)


def same_on_any_number_of_ranks(work, sizes=(2, 3, 5)):
    """What `work` returns on one process is what each rank of several returns."""
    (wanted,) = run_threads(work, 1)
    for size in sizes:
        for found in run_threads(work, size, timeout=60):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


class Scaled(nn.Module):
    """A criterion with a parameter of its own."""

    def __init__(self):
        self.scale = nn.Parameter(np.array([0.5]))

    def forward(self, out, y):
        return ((out - y) * self.scale).square().mean()


def test_a_criterion_with_a_parameter():
    def work():
        d, criterion = model(), model(Scaled)
        xb, yb = batch()
        criterion(d(xb), yb).backward()
        return total_gradient(d), float(criterion.module.scale.grad.numpy()[0])

    def unwrapped():
        xb, yb = batch()
        criterion = Scaled().double()
        criterion(model()(xb), yb).backward()

    same_on_any_number_of_ranks(work)
    on_all_ranks(unwrapped, RuntimeError, "reaches 'scale' of a Scaled .* DistributedDataParallel")


def test_a_layer_that_was_replaced_after_wrapping():
    class Headed(nn.Module):
        def __init__(self):
            self.body, self.head = nn.Linear(3, 8), nn.Linear(8, 1)

        def forward(self, x):
            return self.head(self.body(x))

    def work():
        d = model(Headed)
        d.module.head = nn.Linear(8, 3).double()
        d(batch()[0]).mean().backward()

    on_all_ranks(work, RuntimeError, "of a Linear .* synchronised by no wrapper.* unwrap")


def test_rows_are_no_scalars():
    def one_each():
        rows = X[: sx.size()]
        ((xb, _),) = DataLoader(Dataset(rows, rows), batch_size=len(rows))
        model()(xb)[:, :1].backward()

    def iterated():
        sum(row.sum() for row in model()(batch()[0])).backward()

    on_all_ranks(one_each, RuntimeError, "only for scalar outputs.* rows of a batch of 3")
    on_all_ranks(iterated, RuntimeError, "sx.all_gather")


@pytest.mark.parametrize("mix", [lambda x: x.roll(1, 0), lambda x: x.flip(0), lambda x: x[np.arange(len(x))[::-1]]])
def test_rows_mixed_with_other_rows(mix):
    on_all_ranks(lambda: model()(mix(batch()[0])), RuntimeError, "positions in it mean other rows .* sx.all_gather")


NUMBERS = {
    "a number of rows": lambda out, y: out.square().sum() / len(y),
    "a weight by hand": lambda out, y: out.square().mean() * (len(y) * sx.size() / 7),
    "a number of the loss": lambda out, y: out.square().mean() / out.square().mean().item(),
    "a sum of no tensor": lambda out, y: out.square().sum() / y.numpy().sum(),
    "a sum of untagged rows": lambda out, y: out.square().sum() / sx.tensor(y.numpy()).sum(),
    "in a root": lambda out, y: (out.square().sum() / len(y)).sqrt(),
    "added": lambda out, y: 1 / (out.square().sum() + sx.tensor(y.numpy()).sum()),
    "several": lambda out, y: (out.mean(0) * sx.tensor(y.numpy()).sum(0)).sum(),
}


@pytest.mark.parametrize(
    ("name", "shards"),
    # In reproducible mode the number of a loss is that of the global batch.
    [(name, shards) for name in NUMBERS for shards in (None, 4) if shards is None or name != "a number of the loss"],
)
def test_numbers_that_differ_between_the_ranks(name, shards):
    def work():
        sx.init(virtual_shards=shards)
        d = model()
        xb, yb = batch()
        NUMBERS[name](d(xb), yb).backward()

    on_all_ranks(work, RuntimeError, "must be the same on every rank.*sx.global_rows")


def test_a_loss_that_did_not_come_through_the_wrapped_model():
    def work():
        d, rank = model(), sx.rank()
        d.module(sx.tensor(X[rank : rank + 2])).square().mean().backward()

    on_all_ranks(work, RuntimeError, "must be the same on every rank.*wrapped model")


@pytest.mark.parametrize("loss", [lambda e, w: (e * w).sum() / w.sum(), lambda e, w: e.mean().sqrt()])
def test_a_loss_without_one_denominator_in_accumulate(loss):
    def work():
        d = model()
        for xb, yb in d.accumulate(batches()):
            loss((d(xb) - yb).square(), yb).backward()

    on_all_ranks(work, RuntimeError, "accumulate: .* with one denominator.*no_sync")


def test_no_sync_is_the_way_out():
    def work():
        d = model()
        first, second = list(batches())
        with d.no_sync():
            one = F.mse_loss(d(first[0]), first[1]).sqrt() / 2
            one.backward()
        two = F.mse_loss(d(second[0]), second[1]).sqrt() / 2
        two.backward()
        return total_gradient(d), one.item(), two.item()

    same_on_any_number_of_ranks(work)


def test_a_rank_alone_may_evaluate():
    def work():
        d = model().eval()
        if sx.rank():
            return None
        with sx.no_grad():
            values = [F.mse_loss(d(sx.tensor(X)), Y).sqrt().item()]
            values += [F.mse_loss(d(x), y).item() for x, y in DataLoader(Dataset(X, Y), batch_size=4, shard=False)]
        return values

    assert run_threads(work, 3, timeout=60)[0] == run_threads(work, 1)[0]


def test_losses_show_the_global_batch_after_their_backward():
    def work():
        d = model()
        optimizer = optim.SGD(d.parameters(), lr=0.1)
        kept, history, before, plain, quiet = (
            [],
            sx.zeros(2, dtype=sx.float64),
            0.0,
            0.0,
            sx.zeros((), dtype=sx.float64),
        )
        for i, (xb, yb) in enumerate(batches()):
            optimizer.zero_grad()
            loss = F.mse_loss(d(xb), yb)
            first = loss.detach()
            if sx.is_main_process():
                f"{loss * 100:.3f} {loss / len(xb)}"
            loss.backward()
            optimizer.step()
            kept.append(loss)
            before, plain = before + sx.global_value(first).item(), plain + loss
            history[i] = loss.detach()
            with sx.no_grad():
                quiet += loss
        shown = [*map(float, kept), *history.numpy(), before, plain.item(), quiet.item()]
        twice = [(2 * kept[0]).item(), (kept[0] + 1).item(), sum(kept).item(), sx.stack(kept).mean().item()]
        return [*shown, *twice, float(f"{kept[1]:.4f}"), kept[0].detach().item()]

    same_on_any_number_of_ranks(work)


def test_a_step_that_was_left_out_leaves_the_loss_alone():
    def work():
        d = sx.DistributedDataParallel(net(1)().double(), nonfinite="skip")
        xb, yb = batch()
        loss = F.mse_loss(d(xb), yb) * float("inf")
        loss.backward()
        assert not hasattr(loss, "shown")
        assert all(p.grad is None for p in d.parameters())

    run_threads(work, 3)


def test_a_second_backward():
    def work():
        d = model()
        xb, yb = batch()
        loss = F.mse_loss(d(xb), yb).sqrt() + F.mse_loss(d(xb), yb)
        loss.backward(retain_graph=True)
        once = total_gradient(d)
        loss.backward()
        return once, total_gradient(d), loss.item()

    same_on_any_number_of_ranks(work)


class Noisy(nn.Module):
    """A variational autoencoder with every kind of noise."""

    def __init__(self):
        self.encoder, self.decoder, self.drop = nn.Linear(3, 4), nn.Linear(2, 3), nn.Dropout(0.3)

    def forward(self, x):
        mean, log_var = self.drop(self.encoder(x)).chunk(2, 1)
        z = mean + (0.5 * log_var).exp() * sx.randn_like(mean)
        out = self.decoder(z * sx.bernoulli(z.sigmoid())) + 0.01 * sx.rand_like(x)
        return out, -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(1).mean()


def test_noise_is_drawn_by_row():
    def work():
        d = model(Noisy)
        xb, _ = batch()
        out, kl = d(xb + 0.1 * sx.randn_like(xb))
        loss = F.mse_loss(out, xb) + kl
        loss.backward()
        return total_gradient(d), loss.item(), sx.global_value(kl).item()

    same_on_any_number_of_ranks(work)


def test_noise_of_no_loader_beside_a_batch():
    class Generator(nn.Module):
        def __init__(self):
            self.net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))

        def forward(self, z):
            return self.net(z)

    def work():
        g, d = model(Generator), model()
        xb, _ = batch()
        noise = sx.tensor(xb.numpy() * 2)
        real, made = d(sx.cat([xb, g(noise)])).chunk(2)
        beside = d(sx.cat([xb, noise])).split(len(xb))[1]
        (F.softplus(-real).mean() + F.softplus(made).mean() + beside.square().mean().sqrt()).backward()
        return total_gradient(g), total_gradient(d), float(g.module.net[1].running_mean.numpy().sum())

    same_on_any_number_of_ranks(work, (2, 3, 7))


class Recomputed(nn.Module):
    """Gradient checkpointing by hand: the first layer is computed again when its gradient comes."""

    def __init__(self):
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x):
        with sx.no_grad():
            value = self.first(x).tanh()
        cut = value.detach().requires_grad_()

        def again(gradient):
            with sx.enable_grad():
                out = self.first(x).tanh()
            out.backward(gradient)

        cut.register_hook(again)
        return self.last(cut)


def test_a_backward_in_a_hook():
    def work():
        d = model(Recomputed)
        xb, yb = batch()
        for _ in range(2):
            d.zero_grad()
            loss = F.mse_loss(d(xb), yb).sqrt()
            loss.backward()
        return total_gradient(d), loss.item()

    same_on_any_number_of_ranks(work)


BUFFERS = {
    "+=": lambda m, mean: m.__iadd__(0.1 * (mean - m)),
    "methods": lambda m, mean: m.mul_(0.9).add_(0.1 * mean),
    "copy_": lambda m, mean: m.copy_(0.9 * m + 0.1 * mean),
    "an item": lambda m, mean: m.__setitem__(slice(None), 0.9 * m + 0.1 * mean),
    "assigned": lambda m, mean: 0.9 * m + 0.1 * mean,
}


@pytest.mark.parametrize("how", BUFFERS)
def test_buffers_of_statistics(how):
    class Centred(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(3, 2)
            self.register_buffer("mean", sx.zeros(2, dtype=sx.float64))

        def forward(self, x):
            h = self.layer(x)
            with sx.no_grad():
                new = BUFFERS[how](self.mean, h.mean(0))
                if how == "assigned":
                    self.mean = new
            return h - self.mean

    def work():
        d = model(Centred)
        for xb, _ in batches():
            d(xb).square().mean().backward()
        sx.assert_replicas_equal(d)
        return [*d.state_dict()["mean"].numpy(), total_gradient(d)]

    same_on_any_number_of_ranks(work)


CHANGED_SUMS = {
    "clamp_": lambda x: x.mean(0).clamp_(min=0.1),
    "clamp_ by another": lambda x: x.mean(0).clamp_(max=x.amin(0)),
    "fill_": lambda x: x.sum(0).fill_(3.0),
    "zero_": lambda x: x.sum(0).zero_(),
    "copy_": lambda x: x.sum(0).copy_(x.mean(0)),
    "copy_ of an array": lambda x: x.sum(0).copy_(np.arange(3)),
    "constant_": lambda x: nn.init.constant_(x.sum(0), 4.0),
    "exp_": lambda x: x.mean(0).exp_(),
    "masked_fill_": lambda x: x.sum(0).masked_fill_(sx.tensor([True, False, True]), 1.0),
    "an item": lambda x: written(x.sum(0), 0, 3.0),
    "an item of a mean": lambda x: written(x.mean(0), 0, x.amax()),
    "items by a mask": lambda x: x.sum(0) / written((x > 1).sum(0), (x > 1).sum(0) == 0, 1),
    "all items": lambda x: written(x.sum(0), slice(None), 2.0),
    "linear, then not": lambda x: x.sum(0).mul_(2).add_(x.mean(0)).clamp_(min=0),
    "after a backward": lambda x: after_backward(x).clamp_(max=0.5),
}


def written(x, key, value):
    x[key] = value
    return x


def after_backward(x):
    loss = (x.clone().requires_grad_() ** 2).mean()
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("name", CHANGED_SUMS)
def test_a_sum_over_rows_that_is_written_to(name):
    def work():
        xb, _ = batch()
        return sx.global_value(CHANGED_SUMS[name](xb)).numpy().reshape(-1).tolist()

    same_on_any_number_of_ranks(work)


@pytest.mark.parametrize("share", [lambda s: s.reshape(3, 1), lambda s: s.detach()])
@pytest.mark.parametrize("which", [0, 1])
def test_shared_memory_of_a_sum_over_rows_is_not_written_to(share, which):
    def work():
        xb, _ = batch()
        total = xb.sum(0)
        both = total, share(total)
        both[which].clamp_(min=0)

    on_all_ranks(work, RuntimeError, "shares the memory")


HOOKS = {
    "clamp_": lambda g: g.clamp_(max=0.05),
    "clamp_ alone": lambda g: (g.clamp_(max=0.05), None)[1],
    "mul_ alone": lambda g: (g.mul_(2.0), None)[1],
    "an item": lambda g: (g.__setitem__(0, 1.0), None)[1],
    "zero_": lambda g: g.zero_(),
}


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_that_changes_its_gradient(name):
    class Hooked(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            weights = self.layer.W * 1.0
            weights.register_hook(HOOKS[name])
            return x @ weights

    def work():
        d = model(Hooked)
        d(batch()[0]).square().mean().backward()
        return d.module.layer.W.grad.numpy().reshape(-1).tolist()

    same_on_any_number_of_ranks(work)


def test_gradients_to_inputs_and_parameters():
    def work():
        d = model()
        xb, yb = batch()
        xb.requires_grad_()
        to_x, *to_weights = grad(F.mse_loss(d(xb), yb).sqrt(), [xb, *d.parameters()])
        return [sx.global_value(to_x).abs().sum().item(), *(g.abs().sum().item() for g in to_weights)]

    same_on_any_number_of_ranks(work)


def test_two_loaders():
    def work():
        d = model()
        for (xb, yb), (xc, yc) in zip(batches(2), batches(3), strict=False):
            (F.mse_loss(d(xb), yb) + 0.5 * F.mse_loss(d(xc), yc).sqrt()).backward()
        return total_gradient(d)

    same_on_any_number_of_ranks(work)


def test_the_number_of_rows_as_a_divisor_is_said_where_all_ranks_have_as_many():
    def work():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            ((xb, _),) = DataLoader(Dataset(X[:6], Y[:6]), batch_size=6)
            (model()(xb).square().sum() / len(xb)).backward()
        return [str(w.message) for w in said]

    assert any("sx.global_rows(xb)" in text for texts in run_threads(work, 1) + run_threads(work, 2) for text in texts)
