"""What to say where a package of an extra is missing."""

from types import TracebackType
from typing import final


@final
class extra:  # noqa: N801 - reads as the statement that it is
    """A context that says which extra an import needs.

    with extra("zarr", "zarr arrays need"):
        import numcodecs

    Args:
        name: Of the extra.
        needing: Who needs it, with the verb.

    Raises:
        ImportError: Whatever the imports raised, and the remedy.
    """

    def __init__(self, name: str, needing: str) -> None:
        self.name, self.needing = name, needing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, ImportError):
            remedy = f"pip install 'poise[{self.name}]'"
            raise ImportError(f"{self.needing} the extra {self.name!r} ({error}): {remedy}") from error


__all__ = ["extra"]
