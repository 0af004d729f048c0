"""Benchmarks of this package, for its developers: `python -m tests.benchmarks compare`, `... hosts` and `... profile`.

`compare` sets training steps beside those of other libraries (`compare/`, `peers/`), `hosts` does so over links between
hosts, in the same arena; `profile` measures what a step costs beside its matrix products (`run` starts each of the
parts in a process under a hard limit, `report` prints the results). Everything is single precision with one BLAS thread
a rank, unless said.
"""
