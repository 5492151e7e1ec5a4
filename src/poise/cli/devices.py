"""Where to compute, and what to do where a machine lacks it."""

import torch

_ANYWHERE = ("cpu", "meta")


def check_device(name: str) -> None:
    """Raise unless PyTorch can compute on a device here.

    Args:
        name: Such as cpu, cuda or cuda:1.

    Raises:
        ValueError: No device of that name, or none on this machine; says what there is.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"got --device {name}, expected such as cpu, cuda, cuda:1 or mps ({error})") from error
    if device.type in _ANYWHERE:
        return
    found = torch.accelerator.current_accelerator(check_available=True)
    count = torch.accelerator.device_count() if found else 0
    if found is None or found.type != device.type or (device.index or 0) >= count:
        there = ["cpu", *(f"{found.type}:{i}" for i in range(count) if found)]
        built = f"with CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise ValueError(
            f"got --device {name}, expected one of {', '.join(there)}, which PyTorch {torch.__version__} (built "
            f"{built}) finds here: take one of these; or, where nvidia-smi lists a GPU, install the PyTorch "
            "for its CUDA by the command that pytorch.org/get-started shows"
        )


__all__ = ["check_device"]
