"""Files that are complete or as they were, whenever the process dies."""

import os
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


__all__ = ["replace_text"]
