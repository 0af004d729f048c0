"""The benchmark of this package: what a training step costs beside its matrix products.

`run` starts a process for each part, under a hard limit; the parts are the other modules, and `report` words
the results. Everything is single precision and one BLAS thread a rank.
"""
