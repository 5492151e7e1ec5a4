"""Checkpoints of LeRobot's DiffusionPolicy (Chi et al. 2023, arXiv 2303.04137, as LeRobot 0.3 to 0.6 write it)."""

from collections.abc import Collection
from pathlib import Path

from poise.data.untrusted import DataError, read_json
from poise.interop.lerobot_config import ACTION, config_of, file_of
from poise.interop.lerobot_statistics import PREPROCESSOR, read_processors, within
from poise.interop.tensors import read_tensors
from poise.policies import Checkpoint

WEIGHTS = "model.safetensors"


def import_lerobot(path: str | Path, identity: Collection[str] = ()) -> Checkpoint:
    r"""A LeRobot DiffusionPolicy as ours, with the same plans for the same noise; it runs under every sampler.

    Its sampler is LeRobot's scheduler. The last step of theirs ends at $\sigma = 0$, ours at 1e-9. Images are uint8
    `(height, width, 3)` here, where LeRobot takes floats from 0 to 1 with the channels first. Batch norms keep their
    statistics in fine-tuning.

    Args:
        path: The folder `pretrained_model`: `config.json`, `model.safetensors` and, of LeRobot 0.4 and later, the files
            of its processors.
        identity: Names of features that may lack statistics or a mode of normalisation and then stay in the units of
            the data, as LeRobot leaves them without a word.

    Raises:
        FileNotFoundError: No such folder.
        DataError: A file that is missing, broken or hostile, a part without counterpart, a feature without statistics,
            or a tensor that is missing, surplus or of another shape.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder, expected one with config.json and {WEIGHTS}")
    described, weights = (file_of(root, name, name) for name in ("config.json", WEIGHTS))
    config = config_of(described, read_json(described))
    tensors = {name.replace("._orig_mod.", "."): tensor for name, tensor in read_tensors(weights).items()}
    if (root / PREPROCESSOR).exists():
        statistics = read_processors(root, config)
    elif any(name.startswith("normalize_inputs.") for name in tensors):
        statistics = within(weights, config, tensors)
    else:
        raise DataError(
            root, PREPROCESSOR, f"does not exist, expected it, or statistics in the {WEIGHTS} of LeRobot 0.3"
        )
    seen = {**config.inputs, ACTION: config.action}
    affine = {name: statistics.affine(name, feature, identity) for name, feature in seen.items()}
    return config.outline(weights).placed(tensors, affine, "LeRobot DiffusionPolicy", config.unused)


__all__ = ["WEIGHTS", "import_lerobot"]
