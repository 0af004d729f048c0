"""Random numbers: the seed, its streams, and draws by row of the global batch, the same on any number of ranks."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import getclosurevars
from threading import get_ident
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from sorix_dist.core.arguments import is_integer, raise_for_device
from sorix_dist.core.capture import outside, uncaptured
from sorix_dist.core.dtype import as_dtype
from sorix_dist.core.placement import SINGLE, Batch, Rows, Shard, computing
from sorix_dist.core.tensor import Array


class Seed:
    """A seed, whether the user chose it, and the stream that grows from it."""

    def __init__(self, value: int, chosen: bool) -> None:
        self.value = value
        self.chosen = chosen
        self._stream: np.random.Generator | Callable[[], np.random.Generator]
        self.generator = lambda: np.random.Generator(np.random.Philox(value))

    @property
    def generator(self) -> np.random.Generator:
        """The stream. A function that is set in its place makes it when it is first used."""
        stream = self._stream
        if callable(stream):
            self._stream = stream = stream()
        return stream

    @generator.setter
    def generator(self, stream: np.random.Generator | Callable[[], np.random.Generator]) -> None:
        self._stream = stream


_process = Seed(secrets.randbits(63), chosen=False)
_seed: ContextVar[Seed | None] = ContextVar("seed", default=None)


def seed() -> Seed:
    """The seed in force here."""
    return _seed.get() or _process


def inherit(given: Seed) -> None:
    """Adopts a seed and its stream if this context has none, as in a thread that the program started."""
    if _seed.get() is None:
        _seed.set(given)


def adopt(value: int, chosen: bool = False) -> Seed:
    """Starts all random numbers of this rank anew from a seed."""
    fresh = Seed(value, chosen)
    _seed.set(fresh)
    return fresh


@uncaptured
def manual_seed(value: int) -> np.random.Generator:
    """Starts all random numbers anew from `value`, an integer in [0, 2**63); returns their generator."""
    return adopt(_checked_seed(value), chosen=True).generator


def _checked_seed(value: Any) -> int:
    if not is_integer(value) or not 0 <= value < 2**63:
        raise ValueError(f"manual_seed: value must be an integer in [0, 2**63), got {value!r}")
    return int(value)


class Generator:
    """A stream of random numbers of its own, by PyTorch's name, for `generator=`; at first that of a random seed."""

    def __init__(self, device: Any = "cpu") -> None:
        raise_for_device(device)
        self.seed()

    def manual_seed(self, seed: int) -> Generator:
        """Starts the stream anew from a seed, an integer in [0, 2**63); returns this generator."""
        self._seed = _checked_seed(seed)
        self.stream = np.random.Generator(np.random.Philox(self._seed))
        return self

    def seed(self) -> int:
        """Starts the stream anew from a random seed, another one in each process; returns it."""
        return self.manual_seed(secrets.randbits(63)).initial_seed()

    def initial_seed(self) -> int:
        """The seed that the stream was started from."""
        return self._seed


def generator(given: Any = None) -> np.random.Generator:
    """The stream that random tensors and initial weights are drawn from: `given`, a Generator of this package or of
    NumPy, or else that of the seed. While a loader fetches a sample it is the sample's own."""
    if given is not None:
        outside("a generator of your own can't be captured")
        stream = given.stream if isinstance(given, Generator) else given
        if not isinstance(stream, np.random.Generator):
            raise TypeError(f"generator must be sx.Generator() or np.random.default_rng(), got {type(given).__name__}")
        return stream
    streams = sample_streams.get()
    if streams is not None:
        return streams.current()
    repeated = repeated_draws.get()
    if repeated is not None:
        repeated.begin_again()
    return seed().generator


STREAMS = Generator, np.random.Generator, np.random.RandomState, random.Random  # those that a program makes


def stream_state(stream: Any) -> Any:
    """How far one of STREAMS was read."""
    stream = stream.stream if isinstance(stream, Generator) else stream
    if isinstance(stream, np.random.Generator):
        return stream.bit_generator.state
    return stream.getstate() if isinstance(stream, random.Random) else stream.get_state()


def set_stream_state(stream: Any, state: Any) -> None:
    """Sets one of STREAMS back to where it was."""
    stream = stream.stream if isinstance(stream, Generator) else stream
    if isinstance(stream, np.random.Generator):
        stream.bit_generator.state = state
    elif isinstance(stream, random.Random):
        stream.setstate(state)
    else:
        stream.set_state(state)


@contextmanager
def draws_from(**owners: Any) -> Iterator[list[str]]:
    """A context whose list names, at its end, the streams that it has drawn from: those that every part of a program
    shares, of `random` and `numpy.random`, and those that `owners`, such as a data set, keep or use."""
    own = {name: stream for key, owner in owners.items() for name, stream in _streams_of(owner, key)}
    before, drawn = _global_streams(), list[str]()
    states = {name: repr(stream_state(stream)) for name, stream in own.items()}
    yield drawn
    drawn += [f"the global stream of `{name}`" for name, state in _global_streams().items() if state != before[name]]
    drawn += [f"the generator `{name}`" for name, state in states.items() if repr(stream_state(own[name])) != state]


def _streams_of(owner: Any, name: str, depth: int = 4) -> Iterator[tuple[str, Any]]:
    """The streams, with names, in attributes of an object and of those in these, and in what their functions use."""
    if isinstance(owner, STREAMS):
        yield name, owner
        return
    if not depth or isinstance(owner, type | ModuleType):
        return
    if isinstance(owner, FunctionType):
        used = getclosurevars(owner)
        parts = {**used.globals, **used.nonlocals}
    elif isinstance(owner, list | tuple):
        parts = {str(i): value for i, value in enumerate(owner[:_MOST_ENTRIES])}
    else:
        calls = {key: getattr(type(owner), key, None) for key in ("__getitem__", "__iter__", "__call__")}
        parts = calls | (owner if isinstance(owner, dict) else getattr(owner, "__dict__", {}))
    for key, value in [*parts.items()][:_MOST_ENTRIES]:
        yield from _streams_of(value, f"{name}.{key}", depth - 1)


_MOST_ENTRIES = 32  # of a list in an attribute, such as one of transforms; one of samples may be long


def _global_streams() -> dict[str, Any]:
    kind, key, *rest = np.random.get_state()  # noqa: NPY002 - the user's stream, only read
    return {"random": random.getstate(), "numpy.random": (kind, np.asarray(key).tobytes(), *rest)}


class RepeatedDraws:
    """Makes the computations of a batch's virtual shards, one after the other, draw the same numbers from the common
    stream: those that one computation of the whole batch draws."""

    def __init__(self) -> None:
        self._before: Any = None
        self._again = False

    def next(self, first: bool) -> None:
        """Another computation begins."""
        if first:
            self._before = None
        self._again = self._before is not None

    def begin_again(self) -> None:
        """Before a draw: sets the stream back where the first computation found it."""
        stream = seed().generator.bit_generator
        if self._again:
            stream.state = self._before
        elif self._before is None:
            self._before = stream.state
        self._again = False


repeated_draws: ContextVar[RepeatedDraws | None] = ContextVar("repeated_draws", default=None)


class SampleStreams:
    """A stream for each sample of an epoch: a function of seed, epoch and index, the same on any number of ranks."""

    def __init__(self, seed: int, epoch: int) -> None:
        self._key = seed, epoch
        self._index = 0
        self._stream: np.random.Generator | None = None

    def begin(self, index: int) -> None:
        """The next draws are those of another sample."""
        self._index, self._stream = int(index), None

    def current(self) -> np.random.Generator:
        """The stream of the sample that is being fetched."""
        if self._stream is None:
            self._stream = np.random.Generator(np.random.Philox(np.random.SeedSequence([*self._key, self._index])))
        return self._stream


sample_streams: ContextVar[SampleStreams | None] = ContextVar("sample_streams", default=None)


def stream(*key: int) -> np.random.Generator:
    """A separate stream: a function of the seed and the key, the same on every rank."""
    words: list[Any] = [seed().value, *key]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


class PerSeed:
    """An object that is created again after each `manual_seed`, but not when rank 0's seed replaces one that the user
    did not choose."""

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self._made: ContextVar[tuple[Seed | None, Any] | None] = ContextVar(name, default=None)
        self._make = make

    def __call__(self) -> Any:
        chosen = seed() if seed().chosen else None
        made = self._made.get()
        if made is None or made[0] is not chosen:
            made = chosen, self._make()
            self._made.set(made)
        return made[1]


def state() -> dict[str, Any]:
    """The seed and how far its stream was read: numbers, texts and arrays."""
    return {"seed": seed().value, "stream": seed().generator.bit_generator.state}


def go_on(saved: dict[str, Any]) -> None:
    """Goes on where a `state()` was taken. What was counted since the seed was set stays counted."""
    here = seed()
    generator = np.random.Generator(np.random.Philox(0))
    generator.bit_generator.state = saved["stream"]
    here.value, here.generator = int(saved["seed"]), generator


_BLOCK = 4  # 64-bit words that one step of Philox's counter makes
_OF_FUNCTIONS = 2**63  # the number of `dropout` called as a function; layers count from 0


class Draws:
    """The masks of one layer, numbered: the layer's own number, and how many masks it has drawn.

    calls: the masks that each shard of the batch has seen so far. It belongs into a checkpoint: a layer
    that goes on with the same number of calls draws the masks of an undisturbed run.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._before = 0  # calls of every shard
        self._since: dict[int, int] = {}  # further ones, by shard: a process may compute several, one by one

    @property
    def calls(self) -> int:
        return self._before + max(self._since.values(), default=0)

    @calls.setter
    def calls(self, value: int) -> None:
        self._before, self._since = int(value), {}

    def next(self, shard: int | None) -> int:
        """The number of this mask among those of a virtual shard, or among those of all (None: not in a forward)."""
        replay = replayed_masks.get()
        if replay is not None and replay.again is not None:
            return next(replay.again)
        if shard is None:
            number = self.calls
            self.calls = number + 1
        else:
            number = self._before + self._since.get(shard, 0)
            self._since[shard] = number + 1 - self._before
        if replay is not None:
            replay.numbers.append(number)
        return number


class MaskReplay:
    """The numbers of the masks that a computation drew, so that it can draw the same when it is run again."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.again: Iterator[int] | None = None  # those not used yet, while it is run again


replayed_masks: ContextVar[MaskReplay | None] = ContextVar("masks", default=None)

functional_draws = PerSeed("functional", lambda: Draws(_OF_FUNCTIONS))
"""The masks of `dropout` called as a function, counted anew from each `manual_seed`."""
row_draws = PerSeed("rows", lambda: Draws(_OF_FUNCTIONS + 1))
"""The counter of draws in the shape of rows of a batch, such as by `randn_like`."""


def words_by_row(shape: tuple[int, ...], draws: Draws, place: Shard | None, per_step: int) -> Array:
    """Random 64-bit words for an array of `shape` whose rows have the placement `place` (None: all rows lie along the
    first axis). The result is (units, words): one unit for each element along the rows' axis and the axes before it.

    per_step: the number of elements that four words are for. The words of a row are a function of the seed, of `draws`
    and of the row's index in the global batch, which gives the step of Philox's counter that they begin at; the
    counter's upper words are the numbers of the layer and of its call.
    """
    if place is None or place.axis >= len(shape):
        within = computing.get(get_ident())
        count = shape[0] if shape else 1
        place = Batch(Rows(0, count, count), SINGLE).at(0)
        shape = shape or (1,)
    else:
        within = place.batch
    call = draws.next(within.shard if within is not None and within.group.isolated else None)
    rows = place.rows
    steps = -(-int(np.prod(shape[place.axis + 1 :])) // per_step)
    key = np.array([seed().value, 0], np.uint64)
    blocks = []
    for before in range(int(np.prod(shape[: place.axis])) * place.outer):
        first = (before * rows.total + rows.start) * place.inner
        counter = np.array([first * steps, 0, draws.number, call], np.uint64)
        count = place.batch.held * place.inner * steps * _BLOCK
        blocks.append(np.asarray(np.random.Philox(counter=counter, key=key).random_raw(count), np.uint64))
    words = blocks[0] if len(blocks) == 1 else np.concatenate(blocks or [np.empty(0, np.uint64)])
    units = int(np.prod(shape[: place.axis + 1]))
    return words.reshape(units, steps * _BLOCK)


def uniform_by_row(shape: tuple[int, ...], place: Shard) -> Array:
    """Numbers from [0, 1) of float64, one for each element of rows of a batch."""
    words = words_by_row(shape, row_draws(), place, _BLOCK)
    width = int(np.prod(shape[place.axis + 1 :]))
    return ((words[:, :width] >> np.uint64(11)) * 2.0**-53).reshape(shape)


def normal_by_row(shape: tuple[int, ...], place: Shard) -> Array:
    """Numbers of float64 from the normal distribution, one for each element of rows (Box and Muller 1958)."""
    u, v = uniform_by_row(shape, place), uniform_by_row(shape, place)
    return np.asarray(np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * np.pi * v))


def uniform(shape: tuple[int, ...], place: Shard | None, dtype: Any = np.float64, given: Any = None) -> Array:
    """Numbers from [0, 1): of rows of a batch by their index in the global batch, others from `generator(given)`.
    TypeError unless `dtype` is one of floating point."""
    return _drawn(shape, place, uniform_by_row, np.random.Generator.random, dtype, given)


def normal(shape: tuple[int, ...], place: Shard | None, dtype: Any = np.float64, given: Any = None) -> Array:
    """Numbers from the normal distribution, drawn as those of `uniform`."""
    return _drawn(shape, place, normal_by_row, np.random.Generator.standard_normal, dtype, given)


def _drawn(shape: Any, place: Any, by_row: Any, by_stream: Any, dtype: Any, given: Any) -> Array:
    kind, stream = as_dtype(dtype), generator(given)
    if kind.kind != "f":
        raise TypeError(f"dtype must be a floating point type for random numbers in an interval, got {kind}")
    if place is not None:
        return np.asarray(by_row(shape, place).astype(kind, copy=False))
    batch = computing.get(get_ident())
    if batch is not None and not batch.group.single and shape and shape[0] == batch.held:
        batch.group.warn(
            f"random numbers of shape {shape} for the rows of this rank: every rank draws the same, and another number "
            "of ranks draws others. randn_like(x) and rand_like(x) draw by the rows of the global batch"
        )
    drawn = by_stream(stream, shape, dtype=np.float64 if kind == np.float64 else np.float32)
    return np.asarray(drawn).astype(kind, copy=False)
