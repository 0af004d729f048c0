"""The recipes ask for what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib

import yaml

from sorix_dist._version import __version__
from tests.support.launching import ROOT

PACKAGING = ROOT / "launch" / "packaging"
DEPENDENCIES = [
    re.match(r"[\w-]+", line)[0]
    for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
]


def test_conda():
    recipe = yaml.safe_load((PACKAGING / "conda" / "recipe.yaml").read_text())
    assert recipe["context"] == {"version": __version__}
    required = {line.split()[0] for line in recipe["requirements"]["run"]}
    assert required == {"python", "mpi4py", *DEPENDENCIES}


def test_spack_and_easybuild():
    spack = (PACKAGING / "spack" / "package.py").read_text()
    easyconfig = (PACKAGING / f"sorix_dist-{__version__}-foss-2024a.eb").read_text()
    compile(spack, "package.py", "exec")
    compile(easyconfig, "easyconfig", "exec")
    assert f'version("{__version__}")' in spack
    for name in DEPENDENCIES:
        assert f"py-{name}@" in spack
        assert name in easyconfig or name == "numpy"  # which SciPy-bundle brings
