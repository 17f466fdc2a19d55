"""The version of the installed package."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("stylekern")
except PackageNotFoundError:  # a checkout on the path, not installed
    __version__ = "0+unknown"
