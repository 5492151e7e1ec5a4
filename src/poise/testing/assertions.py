"""What every conformance test raises."""

from torch import Tensor


def near(got: Tensor, expected: Tensor, tolerance: float, message: str) -> None:
    """Raise where numbers differ by more than the tolerance."""
    error = (got - expected).abs().max().item()
    require(error <= tolerance, f"{message} (largest error {error:.3g}, allowed {tolerance:.3g})")


def require(condition: bool, message: str) -> None:
    """Raise unless the condition holds."""
    if not condition:
        raise AssertionError(message)


__all__ = ["near", "require"]
