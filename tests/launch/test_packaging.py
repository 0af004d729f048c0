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
    text = (PACKAGING / "conda" / "meta.yaml").read_text()
    text = re.sub(r"\{\{ *version *\}\}", __version__, re.sub(r"\{%.*%\}", "", text)).replace("{{ PYTHON }}", "python")
    recipe = yaml.safe_load(text)
    assert f'version = "{__version__}"' in (PACKAGING / "conda" / "meta.yaml").read_text()
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
