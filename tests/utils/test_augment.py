"""Transforms of whole batches: the same for any split over ranks, threads and batches."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist.utils.data import DataLoader, Dataset, IterableDataset, SampleRandom, Subset, normalize, one_hot
from tests.support.utils.ranks import place

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 3, 8, 6), np.uint8)
LABELS = np.arange(23) % 4


def augment(x: Any, y: Any, draw: SampleRandom) -> Any:
    x = draw.crop(draw.flip(x), (7, 5), padding=1)
    return normalize(x, [1, 2, 3], 64.0) + draw.normal(1, 1, 1).astype(np.float32), one_hot(y, 4)


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return zip(IMAGES, LABELS, strict=True)


class Own:
    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> Any:
        return IMAGES[index], LABELS[index]


def epoch(data: Any, ranks: int, size: int = 5, epoch: int = 2, **options: Any) -> tuple[Any, Any]:
    """All rows of an epoch, sorted as they come from the ranks, images and labels."""
    parts = []
    for rank in range(ranks):
        with place(rank, ranks):
            loader = DataLoader(data, size, batch_transform=augment, **options)
            loader.set_epoch(epoch)
            parts.append(list(loader))
    batches = [part for batch in zip(*parts, strict=True) for part in batch]
    assert all(x.shape[1:] == (3, 7, 5) and y.shape[1:] == (4,) for x, y in batches)
    return tuple(np.concatenate([batch[i].array for batch in batches]) for i in range(2))


@pytest.mark.parametrize("data", [Dataset(IMAGES, LABELS), Own(), Stream()], ids=["arrays", "own", "stream"])
def test_any_split_gives_the_same(data: Any) -> None:
    order = {} if isinstance(data, Stream) else {"shuffle": True, "seed": 9}
    x, y = epoch(data, 1, **order)
    for ranks, size, workers in [(3, 5, 0), (7, 5, 2), (1, 23, 0), (2, 4, 1)]:
        other, labels = epoch(data, ranks, size, num_workers=workers, **order)
        assert np.array_equal(other, x)
        assert np.array_equal(labels, y)
    assert not np.array_equal(epoch(data, 1, epoch=3, **order)[0], x)
    if order:  # a sample's draws follow from its index, not from its place in the order
        plain, labels = epoch(data, 1, seed=9)
        rows = DataLoader(data, 23, **order).sampler.checked_order(2)
        assert np.array_equal(plain[rows], x)
        assert np.array_equal(labels[rows], y)


def test_draws() -> None:
    draw = SampleRandom(1, 0, np.arange(20_000))
    first, second = draw.uniform(), draw.uniform()
    assert first.shape == (20_000,)
    for numbers in (first, second, draw.uniform(3).ravel()):
        assert abs(numbers.mean() - 0.5) < 0.01
        assert abs(numbers.var() - 1 / 12) < 0.002
        assert 0 <= numbers.min() <= numbers.max() < 1
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.03
    normal = draw.normal(2)
    assert abs(normal.mean()) < 0.02
    assert abs(normal.std() - 1) < 0.02
    assert np.bincount(draw.integers(2, 5)).tolist()[:2] == [0, 0]
    assert set(draw.integers(2, 5).tolist()) == {2, 3, 4}
    some = SampleRandom(1, 0, np.array([7, 19_999, 7]))
    assert some.uniform().tolist() == first[[7, 19_999, 7]].tolist()
    assert SampleRandom(2, 0, np.array([7])).uniform() != first[7] != SampleRandom(1, 1, np.array([7])).uniform()


def test_flip_and_crop() -> None:
    draw = SampleRandom(0, 0, np.arange(23))
    flipped = draw.flip(IMAGES)
    turned = [not np.array_equal(a, b) for a, b in zip(flipped, IMAGES, strict=True)]
    assert 0 < sum(turned) < 23
    assert all(np.array_equal(a, b[..., ::-1] if t else b) for a, b, t in zip(flipped, IMAGES, turned, strict=True))
    windows = draw.crop(IMAGES[:, 0], 4)
    places = [
        (top, left)
        for image, window in zip(IMAGES[:, 0], windows, strict=True)
        for top in range(5)
        for left in range(3)
        if np.array_equal(image[top : top + 4, left : left + 4], window)
    ]
    assert len(places) == 23
    assert len(set(places)) > 8
    assert draw.crop(IMAGES, (8, 6), padding=2).shape == IMAGES.shape
    with pytest.raises(ValueError, match=r"size \(9, 9\) must fit into padded images, got shape"):
        draw.crop(IMAGES, 9)


def test_normalize_and_one_hot() -> None:
    x = normalize(IMAGES, [10, 20, 30], [1, 2, 4])
    assert x.dtype == np.float32
    np.testing.assert_allclose(x[:, 1], (IMAGES[:, 1].astype(float) - 20) / 2, rtol=1e-6)
    np.testing.assert_allclose(normalize(IMAGES, 10, 2), (IMAGES.astype(float) - 10) / 2, rtol=1e-6)
    assert one_hot(np.array([1, 0]), 3).tolist() == [[0, 1, 0], [1, 0, 0]]
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\), got numbers from 0 to 3"):
        one_hot(np.array([3, 0]), 3)


def test_without_draws_and_with_dicts() -> None:
    ((x, y),) = list(DataLoader(Dataset(IMAGES, LABELS), 23, batch_transform=lambda x, y: (x / 255, y + 1)))
    assert x.array.max() <= 1
    assert y.tolist() == (LABELS + 1).tolist()
    assert x.rows is not None
    (x,) = list(DataLoader(-IMAGES.astype(np.float32), 23, batch_transform=np.abs))
    assert np.array_equal(x.array, IMAGES)
    data = [{"x": image} for image in IMAGES]
    (batch,) = list(DataLoader(data, 23, batch_transform=lambda batch: {"mean": batch["x"].mean((1, 2, 3))}))
    assert batch["mean"].shape == (23,)


def test_bad_transforms() -> None:
    data = Dataset(IMAGES, LABELS)
    with pytest.raises(ValueError, match="batch_transform must make 5 rows of 5 samples, got tensors of shape"):
        list(DataLoader(data, 5, batch_transform=lambda x, y: (x[1:], y)))
    with pytest.raises(ZeroDivisionError) as error:
        list(DataLoader(data, 5, batch_transform=lambda x, y: 1 // 0))
    assert error.value.__notes__[0] == "raised by batch_transform"
    with pytest.raises(TypeError, match="batch_transform must be a function of a batch, got int"):
        DataLoader(data, 5, batch_transform=3)


class Drawing:
    """Augments as data sets of PyTorch do, by random tensors, sample by sample."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> Any:
        shift = int(sx.randint(0, 3, (1,)))
        return sx.tensor(IMAGES[index, 0, shift : shift + 5]).float() + sx.randn(5, 6), LABELS[index]


def shifted(image: Any) -> Any:
    return image[0, int(sx.randint(0, 3, (1,)))] + sx.rand(6)


@pytest.mark.parametrize("data", [Drawing(), Dataset(IMAGES, LABELS, transform=shifted), Subset(Drawing(), range(23))])
def test_random_tensors_of_a_sample_follow_from_its_index(data: Any) -> None:
    def rows(ranks: int, epoch: int = 2, **options: Any) -> Any:
        parts = []
        for rank in range(ranks):
            with place(rank, ranks):
                loader = DataLoader(data, 5, shuffle=True, seed=9, **options)
                loader.set_epoch(epoch)
                parts.append([x.array for x, _ in loader])
        return np.concatenate([part for batch in zip(*parts, strict=True) for part in batch])

    sx.manual_seed(4)
    before = sx.core.random.state()["stream"]["state"]["counter"].tolist()
    whole = rows(1)
    for ranks, workers in [(3, 0), (7, 2), (2, 1)]:
        assert np.array_equal(rows(ranks, num_workers=workers), whole)
    assert not np.array_equal(rows(1, epoch=3), whole)
    assert sx.core.random.state()["stream"]["state"]["counter"].tolist() == before  # the stream of weights stays


class Noise:
    """A transform with a stream of its own."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __call__(self, image: Any) -> Any:
        return image + self.stream.random()


class Noisy:
    """A data set of one's own with such a transform."""

    def __init__(self, stream: Any) -> None:
        self.transforms = [lambda image: image, Noise(stream)]

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> Any:
        return self.transforms[1](IMAGES[index])


SHARED = np.random.default_rng(0)


def shifted(samples: list[Any]) -> Any:
    return sx.tensor(np.stack(samples) + SHARED.random())


@pytest.mark.parametrize(
    ("make", "drawn"),
    [
        (lambda: (Dataset(IMAGES, transform=lambda x: x + random.random()),), "Dataset draws from .*of `random`"),
        (lambda: (Dataset(IMAGES, transform=lambda x: x + np.random.random()),), "of `numpy.random`"),  # noqa: NPY002
        (lambda: (Dataset(IMAGES, transform=Noise(random.Random(0))),), "the generator `dataset.*.stream`"),
        (lambda: (Noisy(np.random.default_rng(0)),), "Noisy draws from the generator `dataset.transforms.1.stream`"),
        (lambda: (Subset(Noisy(np.random.RandomState(0)), range(9)),), "`dataset.dataset.transforms.1.stream`"),
        (lambda: (Dataset(IMAGES, transform=lambda x: x + SHARED.random()),), "the generator `dataset.*.SHARED`"),
        (lambda: (Dataset(IMAGES), shifted), "the generator `collate_fn.SHARED`"),
    ],
)
def test_shared_streams_are_named_on_several_ranks(make: Any, drawn: str) -> None:
    def first(ranks: int) -> None:
        dataset, *collate_fn = make()
        with place(1 % ranks, ranks):
            next(iter(DataLoader(dataset, 6, collate_fn=collate_fn[0] if collate_fn else None)))

    first(1)
    with pytest.warns(RuntimeWarning, match=f"{drawn} for a batch.*sx.rand"):
        first(2)


def test_streams_of_a_sample_are_not_named() -> None:
    class Seeded(Noisy):
        def __getitem__(self, index: int) -> Any:
            return IMAGES[index] + np.random.default_rng(index).random()

    with place(1, 2), warnings.catch_warnings():
        warnings.simplefilter("error")
        next(iter(DataLoader(Seeded(np.random.default_rng(0)), 6)))
