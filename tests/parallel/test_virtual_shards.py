"""The fixed tree: however its leaves are shared out, the bits of the sum are the same."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sorix_dist.parallel.virtual_shards import Additions, blocks, halves, subtrees, sum_rows
from sorix_dist.utils.data import shard_bounds

counts = st.sampled_from([1, 2, 4, 8, 16, 32])


def rows_of(count: int, length: int, seed: int, dtype: type = np.float32) -> np.ndarray:
    """Numbers of many sizes, so that another order of addition gives other bits."""
    draw = np.random.default_rng(seed)
    return (draw.standard_normal((count, length)) * 10.0 ** draw.integers(-6, 6, (count, length))).astype(dtype)


def test_the_order():
    rows = rows_of(8, 1000, 0)
    a, b, c, d, e, f, g, h = rows
    assert (sum_rows(rows) == ((a + b) + (c + d)) + ((e + f) + (g + h))).all()
    assert (sum_rows(rows) != rows.sum(axis=0)).any()


def test_a_lonely_negative_zero_is_positive():
    assert not np.signbit(sum_rows(np.array([[-0.0]]))).any()
    assert not np.signbit(sum_rows(np.array([[-0.0], [0.0]]))).any()


@given(counts, st.data())
def test_subtrees_are_the_fewest_nodes_that_cover(count, data):
    first = data.draw(st.integers(0, count))
    last = data.draw(st.integers(first, count))
    nodes = subtrees(first, last, count)
    assert [i for low, high in nodes for i in range(low, high)] == list(range(first, last))
    for low, high in nodes:
        width = high - low
        assert width & (width - 1) == 0
        assert low % width == 0  # a node of the tree
    # Two neighbours that were halves of one node would have been that node.
    for left, right in pairwise(nodes):
        parent = (left[0], right[1])
        whole = parent[1] - parent[0]
        assert not (left[1] - left[0] == right[1] - right[0] and parent[0] % whole == 0)


@given(counts.filter(lambda n: n > 1))
def test_halves(count):
    assert halves((0, count)) == ((0, count // 2), (count // 2, count))


@given(counts, st.integers(1, 12), st.integers(1, 70), st.integers(1, 64), st.integers(0, 99))
def test_plans_give_the_bits_of_sum_rows_for_any_ranks(count, ranks, length, block, seed):
    """Each rank adds up its subtrees; the sum of all of these is that of one rank, in blocks of any length."""
    ranks = min(ranks, count)
    rows = rows_of(count, length, seed)
    wanted = sum_rows(rows)
    nodes = {}
    for rank in range(ranks):
        first, last = shard_bounds(count, rank, ranks)
        leaves = {(i, i + 1): rows[i] for i in range(first, last)}
        for node in subtrees(first, last, count):
            nodes[node] = np.full(length, np.nan, np.float32)
            for plan in blocks(nodes[node], 0, length, block, leaves, node):
                plan.run()
    before = {node: array.copy() for node, array in nodes.items()}
    total = np.full(length, np.nan, np.float32)
    for plan in blocks(total, 0, length, block, nodes, (0, count)):
        plan.run()
    assert total.tobytes() == wanted.tobytes()
    assert all(nodes[node].tobytes() == array.tobytes() for node, array in before.items())  # its parts stay


@given(counts, st.integers(0, 30), st.integers(0, 30), st.integers(0, 99))
def test_blocks_leave_other_elements_alone(count, start, more, seed):
    rows = rows_of(count, 61, seed)
    total = np.full(61, 7.0, np.float32)
    stop = start + more
    for plan in blocks(total, start, stop, 8, {(i, i + 1): row for i, row in enumerate(rows)}, (0, count)):
        plan.run()
    assert total[start:stop].tobytes() == sum_rows(rows)[start:stop].tobytes()
    assert (np.delete(total, range(start, stop)) == 7).all()


@given(counts, st.integers(0, 99))
def test_a_plan_can_be_run_again_with_other_numbers(count, seed):
    rows = rows_of(count, 9, seed, np.float64)
    total = np.empty(9)
    plan = Additions({(i, i + 1): row for i, row in enumerate(rows)}, (0, count), total, {})
    for again in range(2):
        rows[...] = rows_of(count, 9, seed + again, np.float64)
        plan.run()
        assert total.tobytes() == sum_rows(rows).tobytes()
