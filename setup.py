"""The compiled library and the folders; all else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import find_packages, setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "tools"))
import build_library

extensions = build_library.extensions()

setup(
    ext_modules=extensions,
    cmdclass={"build_ext": build_library.BuildLibrary},
    package_data={"stylekern": ["py.typed"]},
    packages=sorted({*find_packages(include=["stylekern", "stylekern.*"]), "stylekern.triton_kernels"}),
    # A top-level `triton_kernels` belongs to another project; the folder is installed inside of the package.
    package_dir={"stylekern.triton_kernels": "triton_kernels"},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if extensions else {},
)
