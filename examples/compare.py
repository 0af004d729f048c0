"""Compares the weights that two runs of train.py have saved; exit code 1 if they differ by more than rounding.

    python examples/compare.py build/ranks-4.npz build/ranks-1.npz
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

TOLERANCE = 100
"""In units of rounding: the distance between neighbouring float32 numbers at the largest weight.

Another number of ranks adds the same numbers in another order, so a step rounds differently by about one unit.
Over a few hundred steps this adds up to some ten units, while one row that is lost, counted twice or weighted
wrongly in a single step already moves the weights by thousands.
"""


def main() -> int:
    """Prints the largest difference over all arrays of two files; 0 if it is rounding, 1 if not."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("files", metavar="FILE.npz", nargs=2)
    args = options.parse_args()

    with np.load(args.files[0]) as first, np.load(args.files[1]) as second:
        a, b = dict(first), dict(second)
    shapes = [{name: array.shape for name, array in arrays.items()} for arrays in (a, b)]
    if shapes[0] != shapes[1]:
        print(f"these are weights of different models: {shapes[0]} and {shapes[1]}")
        return 1

    largest = max(np.abs(array).max() for array in (*a.values(), *b.values()))
    difference = max(np.abs(a[name].astype(np.float64) - b[name]).max() for name in a)
    units = difference / np.spacing(np.float32(largest))
    same = bool(units <= TOLERANCE)  # also false for NaN
    print(
        f"{sum(array.size for array in a.values()):,} weights up to {largest:.3f}: largest difference {difference:.2g}, "
        f"{units:.0f} units of float32 rounding ({'at most' if same else 'MORE THAN'} {TOLERANCE} are expected)"
    )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
