"""Files that the processes of a command must find the same."""

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Pinned:
    """A file as the command saw it, which a worker must find the same.

    Attributes:
        path: Where it is.
        sha256: Of its bytes.
    """

    path: Path
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Pinned":
        """The file as it is now."""
        return cls(path, _digest(path))

    def checked(self) -> Path:
        """The path, where the file is the same here and now.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Another one.
        """
        if not self.path.is_file():
            raise FileNotFoundError(
                f"{self.path} does not exist on {platform.node()}, expected what the command was given: share its file "
                "system with the workers, or copy it to the same path"
            )
        found = _digest(self.path)
        if found != self.sha256:
            raise ValueError(
                f"{self.path} on {platform.node()} has the sha256 {found[:12]}..., expected {self.sha256[:12]}... as "
                "where the command began: copy it again, and change it only when the command has ended"
            )
        return self.path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["Pinned"]
