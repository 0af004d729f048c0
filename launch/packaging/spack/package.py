"""Spack's recipe, for Spack 1.0 or newer: put this folder into a repository of yours as packages/py_sorix_dist."""

from spack_repo.builtin.build_systems.python import PythonPackage

from spack.package import *


class PySorixDist(PythonPackage):
    """Data-parallel training on NumPy and MPI, with the same result on any number of ranks."""

    pypi = "sorix_dist/sorix_dist-0.1.0.tar.gz"

    license("MIT")

    version("0.1.0")  # spack checksum py-sorix-dist adds the digest of the released file

    variant("mpi", default=True, description="Several ranks; without it, one process")

    depends_on("python@3.11:", type=("build", "run"))
    depends_on("py-hatchling@1.21:", type="build")
    depends_on("py-numpy@2.1:", type=("build", "run"))
    depends_on("py-cloudpickle@3:", type=("build", "run"))
    depends_on("py-threadpoolctl@3.2:", type=("build", "run"))
    depends_on("py-tqdm@4.66:", type=("build", "run"))
    depends_on("py-mpi4py@4.1:", type=("build", "run"), when="+mpi")

    import_modules = ["sorix_dist", "sorix_dist.nn", "sorix_dist.optim"]
