"""Files that hold a whole network: weights and configuration."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

S = TypeVar("S", bound="Saved")
_CLASSES: dict[str, type[Saved]] = {}


class Saved:
    """For an nn.Module: `save` and `load`. Subclasses tell their `config`, and how it builds one of them."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _CLASSES.setdefault(cls.__name__, cls)

    @property
    def config(self) -> dict[str, Any]:
        """What builds a network of the same structure, as plain types; weights are not among them."""
        raise NotImplementedError(f"{type(self).__name__} must implement config")

    @classmethod
    def build(cls: type[S], config: dict[str, Any]) -> S:
        """A network of this structure, with the weights that it starts with."""
        return cls(**config)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes weights and configuration into one safetensors file, an encoder's among them; whole or not at all.

        Raises:
            FileNotFoundError: No folder to write it in.
            IsADirectoryError: The path is a folder's.
        """
        from safetensors.torch import save

        assert isinstance(self, nn.Module)
        target = Path(path).expanduser()
        if not target.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {target.parent} to save a network in")
        if target.is_dir():
            raise IsADirectoryError(f"{target} is a folder; name a file in it")
        # clones: safetensors takes no two names of one storage
        state = {k: x.detach().clone(memory_format=torch.contiguous_format) for k, x in self.state_dict().items()}
        about = json.dumps({"network": type(self).__name__, **self.config}, default=_plain)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            (Path(folder) / "network").write_bytes(save(state, metadata={"stylekern": about}))
            os.replace(Path(folder) / "network", target)

    @classmethod
    def load(cls: type[S], path: str | os.PathLike[str]) -> S:
        """The network that :meth:`save` wrote, on the CPU, in float32, in `eval()`.

        Raises:
            FileNotFoundError: No file at the path.
            ValueError: A file that :meth:`save` did not write, or of another network.
        """
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load_file

        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        try:
            with safe_open(path, "pt") as file:
                about = (file.metadata() or {}).get("stylekern")
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: {error}") from error
        if about is None:
            raise ValueError(f"{path} has no configuration beside its weights: {cls.__name__}.save() did not write it")
        try:
            config: dict[str, Any] = json.loads(about)
            name = str(config.pop("network"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} has a configuration that {cls.__name__}.save() did not write: {about!r}"
            ) from error
        found = cls if cls.__name__ == name else _CLASSES.get(name)
        if found is None or not issubclass(found, cls):
            raise ValueError(f"{path} holds a network {name}, not {cls.__name__}")
        try:
            network = found.build(config)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} has a configuration that {name}.save() did not write: {about!r}") from error
        assert isinstance(network, nn.Module)
        try:
            network.load_state_dict(load_file(path))
        except RuntimeError as error:
            raise ValueError(f"{path} has other weights than its configuration {about!r}: {error}") from error
        network.eval()
        return network


def _plain(value: Any) -> Any:
    """Numbers of numpy's, which options may be, as JSON has them."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {value!r} cannot be saved in a configuration")
