"""Compares the weights that two runs of train.py have saved; exit code 1 if more than rounding differs.

python examples/compare.py build/ranks-4.npz build/ranks-1.npz
"""

from __future__ import annotations

import argparse
import sys
import zipfile

import numpy as np

TOLERANCE = 100
"""In units of rounding: the distance of neighbouring float32 numbers at the largest weight.

Another number of ranks adds the same numbers in another order. Measured with train.py as it stands, on 2, 3, 4
and 7 ranks and with the BLAS kernels of three kinds of CPU, this makes 5 to 9 units after 20 epochs. One wrong label in
one of the 460 steps, the last one included, makes 170,000 or more.

Other seeds may part by as much without an error: the input of a ReLU that is zero but for rounding can be
above zero in one run and below in the other. In float64 they agree too, to 1e-13.
"""


def weights(path: str) -> dict[str, np.ndarray]:
    """The arrays of a file by their names; SystemExit if it cannot be read or is empty."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        sys.exit(f"{path} is not a file of weights: {error}")
    return arrays or sys.exit(f"{path} holds no weights")


def main() -> int:
    """Prints the largest difference over all arrays of two files; 0 if it is rounding, 1 if not."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("files", metavar="FILE.npz", nargs=2)
    a, b = map(weights, options.parse_args().files)
    shapes = [{name: array.shape for name, array in arrays.items()} for arrays in (a, b)]
    if shapes[0] != shapes[1]:
        print(f"weights of different models: {shapes[0]} and {shapes[1]}")
        return 1

    largest = np.max([np.abs(array).max() for arrays in (a, b) for array in arrays.values()])
    difference = np.max([np.abs(a[name].astype(np.float64) - b[name]).max() for name in a])  # NaN if any is
    units = difference / np.spacing(np.float32(largest))
    same = bool(units <= TOLERANCE)
    print(
        f"{sum(array.size for array in a.values()):,} weights up to {largest:.3f} differ by at most {difference:.2g}, "
        f"{units:.0f} units of float32 rounding: "
        + (f"the same (limit {TOLERANCE})" if same else f"NOT the same (limit {TOLERANCE})")
    )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
