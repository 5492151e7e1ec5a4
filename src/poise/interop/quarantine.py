"""Pickled checkpoints, read by a process of its own that has limits and runs nothing of what is in them."""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from poise.data import DataError
from poise.data.quarantine import Limits, quarantined
from poise.data.untrusted import read_json

MAX_BYTES = 8 * 2**30  # of a file
_SECONDS = 120.0
_MEMORY = 2**30  # bytes beside three times the file


class Unpickled(NamedTuple):
    """What a pickled checkpoint holds.

    Attributes:
        tensors: Path in the tree, such as `state_dicts/ema_model/model.weight` -> tensor.
        rest: The rest of the tree as JSON data.
    """

    tensors: dict[str, Tensor]
    rest: Any


def unpickled(path: str | Path, most: int = MAX_BYTES) -> Unpickled:
    """Tensors and configuration of a checkpoint of `torch.save`; nothing in it is executed.

    Args:
        path: The file.
        most: Largest size in bytes.

    Raises:
        FileNotFoundError: No such file.
        DataError: Another kind of file, a broken or hostile one, or one that is too large.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, expected a checkpoint of torch.save")
    size = path.stat().st_size
    if size > most:
        raise DataError(path, "archive", f"has {size} bytes, expected at most {most}")

    limits = Limits(_SECONDS, 3 * size + _MEMORY, 3 * size + 2**24, _SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        quarantined(path, "archive", Path(__file__).with_name("unpickle.py"), [str(path.absolute()), folder], limits)
        try:
            return Unpickled(load_file(Path(folder) / "tensors.safetensors"), read_json(Path(folder) / "rest.json"))
        except SafetensorError as error:
            raise DataError(path, "archive", f"holds no tensors that can be kept ({error})") from error


__all__ = ["MAX_BYTES", "Unpickled", "unpickled"]
