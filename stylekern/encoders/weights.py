"""Weights from files and addresses, checked before they are read."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import urllib.parse
from pathlib import Path

import torch
from torch import Tensor

Weights = str | os.PathLike[str] | None


def read_weights(source: str | os.PathLike[str], sha256: str | None = None) -> tuple[dict[str, Tensor], str]:
    """The tensors of a state dict, on the CPU, and what an error message calls their origin: path and hash.

    An address (https, http, file) is fetched once by torch.hub, into its folder of checkpoints. The hash of the file is
    checked every time, so of a cached file too: against `sha256`, else against the digits in its name, as torch.hub has
    them (`vgg19-dcbb9e9d.pth`). Files ending in .safetensors are read as such, others by `torch.load` with
    `weights_only=True`, which runs no code of theirs.

    Args:
        source: A path or an address.
        sha256: Of the file, in hexadecimal digits; the first eight are enough.

    Raises:
        FileNotFoundError: No file at the path.
        ValueError: A `sha256` that is none; another hash; a file that holds no dict of tensors.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{8,64}", sha256):
        raise ValueError(f"sha256 must be 8 to 64 hexadecimal digits, got {sha256!r}")
    text = os.fspath(source)
    address = urllib.parse.urlparse(text)
    if address.scheme in ("http", "https", "file"):
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(address.path).name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(text, str(path), progress=False)
    else:
        path = Path(text).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}; weights are a path, an https address, or None")
    digest = _sha256(path)
    in_name = re.search("-([0-9a-f]{8,64})$", path.stem)
    expected = sha256.lower() if sha256 else in_name.group(1) if in_name else ""
    if not digest.startswith(expected):
        raise ValueError(
            f"{path} has the SHA-256 {digest}, expected {expected}: it is damaged or another file. Delete it and fetch "
            "it anew, or name the hash that is meant with sha256="
        )
    return _read(path, digest), f"{path} (SHA-256 {digest[:16]})"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _read(path: Path, digest: str) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} (SHA-256 {digest[:16]}) is no safetensors file: {error}") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} (SHA-256 {digest[:16]}) is no file of tensors for torch.load: {error}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(isinstance(x, Tensor) for x in state.values()):
        raise ValueError(f"{path} (SHA-256 {digest[:16]}) holds no state dict, a dict of tensors")
    return dict(state)
