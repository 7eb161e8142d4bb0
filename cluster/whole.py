"""Files that are written for people: whole or not at all, and never over another unasked."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from sagacity.errors import Malformed


def require_new(file: Path, *, force: bool, option: str) -> None:
    """Refuse a file that could not be written later, before anything is asked.

    Args:
        file: to be written.
        force: it may exist.
        option: that names it, for the error's text.

    Raises:
        Malformed: it exists (unless `force`), is a folder, or has no folder to stand in.
    """
    if file.is_dir():
        raise Malformed(f"{option} {file}: is a folder")
    if not force and os.path.lexists(file):
        raise _there(file, option)
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise Malformed(f"{option} {file}: {file.parent} is no folder that can be written to")


def write_whole(content: bytes, file: Path, *, force: bool, option: str) -> None:
    """Write a file whole or not at all, for its user alone: it may hold what customers wrote.

    Raises:
        Malformed: it exists by now (unless `force`), or cannot be written.
    """
    try:
        handle, new = tempfile.mkstemp(dir=file.parent, prefix=".sagacity-")  # mode 0600
    except OSError as error:
        raise Malformed(f"{option} {file}: {error.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(content)
        if force:
            os.replace(new, file)
        else:
            os.link(new, file)  # fails where a file has come meanwhile
    except FileExistsError:
        raise _there(file, option) from None
    except OSError as error:
        raise Malformed(f"{option} {file}: {error.strerror}") from None
    finally:
        with suppress(FileNotFoundError):
            os.unlink(new)


def _there(file: Path, option: str) -> Malformed:
    return Malformed(f"{option} {file}: exists already; another name, or --force to replace it")
