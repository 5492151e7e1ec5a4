"""Files that are complete or as they were, whenever the process dies."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def replace_text(file: Path, text: str) -> None:
    """Write a file, which is complete or as it was, and on the disk then."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def saving(what: str, then: str) -> Iterator[None]:
    """Where an error of the disk says what was being saved, and what to do.

    Args:
        what: It is being saved.
        then: What helps as soon as there is space.

    Raises:
        OSError: The disk is full, or broken.
    """
    try:
        yield
    except OSError as error:
        said = f"{error.strerror or error} while saving {what}: free some space, then {then}"
        raise OSError(error.errno, said) from error


__all__ = ["replace_text", "saving"]
