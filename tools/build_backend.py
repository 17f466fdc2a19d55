"""PEP 517 backend: setuptools, and the one thing it lacks here, a torch to compile against.

Under pip's build isolation torch cannot be imported, yet its headers lie in the environment being installed into. Only
where they do not is torch asked for as a build requirement.
"""

from __future__ import annotations

import build_library
import setuptools
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (a backend is its hooks)

# An older one would stop at an SPDX license, in words that nobody understands.
if int(setuptools.__version__.partition(".")[0]) < 77:
    raise SystemExit(
        f"\nstylekern could not be built: it needs setuptools>=77, and this environment has {setuptools.__version__}.\n"
        "Without --no-build-isolation, pip brings its own; else: pip install --upgrade 'setuptools>=77'"
    )


def _requirements() -> list[str]:
    if build_library.build_mode() == "none":
        return []
    return ["ninja>=1.11"] + ([] if build_library.torch_root() else ["torch>=2.10"])


def get_requires_for_build_wheel(config_settings=None):
    return build_meta.get_requires_for_build_wheel(config_settings) + _requirements()


def get_requires_for_build_editable(config_settings=None):
    return build_meta.get_requires_for_build_editable(config_settings) + _requirements()
