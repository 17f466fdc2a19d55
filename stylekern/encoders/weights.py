"""Weights from files and addresses, checked before they are read."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

import torch
from torch import Tensor

Weights = str | os.PathLike[str] | None


def read_weights(source: str | os.PathLike[str], sha256: str | None = None) -> tuple[dict[str, Tensor], str]:
    """The tensors of a state dict, on the CPU, and what an error message calls their origin: path and hash.

    What is at an address (https, http) is fetched once, into torch.hub's folder of checkpoints, where torch.hub itself
    and torchvision keep what has a hash in its name; it stays there only if it can be read and its hash fits. The hash
    of the file is checked every time, so of a cached file too: against `sha256`, else against the digits at the end of
    its name, as torch.hub has them (`vgg19-dcbb9e9d.pth`). Files ending in .safetensors are read as such, others by
    `torch.load` with `weights_only=True`, which runs no code of theirs.

    Args:
        source: A path, or an https, http or file address.
        sha256: Of the file, in hexadecimal digits; the first eight are enough.

    Raises:
        FileNotFoundError: No file at the path.
        ValueError: A `sha256` that is none; an address of no file; another hash; a file that holds no dict of tensors.
        urllib.error.URLError: An address that cannot be reached.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{8,64}", sha256):
        raise ValueError(f"sha256 must be 8 to 64 hexadecimal digits, got {sha256!r}")
    text = os.fspath(source)
    address = urllib.parse.urlparse(text)
    if address.scheme in ("http", "https"):
        name = Path(address.path).name
        if not name:
            raise ValueError(f"{text} is the address of no file: its path has no name")
        known = name if _hash_in(Path(name)) else f"{hashlib.sha256(text.encode()).hexdigest()[:12]}-{name}"
        path = Path(torch.hub.get_dir()) / "checkpoints" / known
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                part = Path(folder) / name
                torch.hub.download_url_to_file(text, str(part), progress=False)
                _read(part, _checked(part, sha256))
                os.replace(part, path)
    else:
        path = Path(urllib.request.url2pathname(address.path) if address.scheme == "file" else text).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}; weights are a path, an https address, or None")
    digest = _checked(path, sha256)
    return _read(path, digest), f"{path} (SHA-256 {digest[:16]})"


def check_weight(encoder: str, origin: str, key: str, own: Tensor, given: Tensor) -> None:
    """Raises ValueError unless what a file has for a weight is one: of its shape, of floating point, finite."""
    if own.shape != given.shape:
        raise ValueError(f"{encoder}: {origin}: {key} must be {list(own.shape)}, got {list(given.shape)}")
    if not given.is_floating_point():
        raise ValueError(f"{encoder}: {origin}: {key} must be of floating point, got {given.dtype}")
    if not given.isfinite().all():
        raise ValueError(f"{encoder}: {origin}: {key} must be finite; the file may be broken")


def _hash_in(path: Path) -> str:
    """The digits at the end of a file's name."""
    found = re.search("-([0-9a-fA-F]{8,64})$", path.stem)
    return found.group(1).lower() if found else ""


def _checked(path: Path, sha256: str | None) -> str:
    """The file's SHA-256, if it is the expected one."""
    digest, expected = _sha256(path), sha256.lower() if sha256 else _hash_in(path)
    if not digest.startswith(expected):
        whose = "" if sha256 else " (by its name)"
        raise ValueError(
            f"{path} has the SHA-256 {digest}, expected {expected}{whose}: it is damaged or another file. Delete it "
            "and fetch it anew, or name the hash that is meant with sha256="
        )
    return digest


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _read(path: Path, digest: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:  # whatever its name
        return load_file(path)
    except SafetensorError as error:
        if path.suffix == ".safetensors":
            raise ValueError(f"{path} (SHA-256 {digest[:16]}) is no safetensors file: {error}") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch.load makes of bytes that are none of its own
        # Not its message, which advises to load what may execute code.
        raise ValueError(
            f"{path} (SHA-256 {digest[:16]}) is neither a safetensors file nor tensors that torch.load(path, "
            "weights_only=True) takes"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(key, str) and isinstance(x, Tensor) for key, x in state.items())
    ):
        raise ValueError(f"{path} (SHA-256 {digest[:16]}) holds no state dict, tensors by name")
    return dict(state)
