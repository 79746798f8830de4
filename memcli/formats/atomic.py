"""Writing a file so that it appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path

from memcli import unfinished
from memcli.errors import BadInput
from memcli.quoting import shown_path

# File systems without hard links answer with one of these (EPERM: FAT, some network shares).
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


def write_atomically(
    path: str | os.PathLike[str], data: bytes, *, overwrite: bool, asked_for: bool = True
) -> None:
    """Puts ``data`` at ``path`` in one step; no reader ever sees a part of it.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and take the name
    last. The temporary file is removed whatever happens, an interrupt from the keyboard included. A
    file that is replaced passes its permissions on; a symbolic link is followed.

    Args:
        path: of the file.
        data: all of it.
        overwrite: whether a file that is there is replaced.
        asked_for: the user named the file, and is told of it where the command is interrupted.

    Raises:
        BadInput: the path is empty, a folder or no regular file, its folder is missing or not
            writable, it exists and ``overwrite`` is false, or the disk is full.
    """
    name = shown_path(os.fspath(path))
    target = _checked_target(Path(path), name, overwrite=overwrite)
    temporary = target.with_name(f".memcli-{secrets.token_hex(6)}.tmp")
    unfinished.making(temporary)
    try:
        _write_whole(temporary, data, mode=_mode_of(target))
        unfinished.placing(temporary, target, name if asked_for else "")
        if overwrite:
            os.replace(temporary, target)
        else:
            _take_free_name(temporary, target, name)
        unfinished.placed(temporary)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _cannot_write(name, error) from error
    finally:
        unfinished.failed(temporary)  # unless it was placed
        with contextlib.suppress(OSError, ValueError):
            temporary.unlink()
        unfinished.gone(temporary)
    _flush_folder(target.parent)


def check_target(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raises BadInput where :func:`write_atomically` would refuse the path; writes nothing."""
    _checked_target(Path(path), shown_path(os.fspath(path)), overwrite=overwrite)


def _checked_target(path: Path, name: str, *, overwrite: bool) -> Path:
    """The path to write to, symbolic links followed; says early what would fail late."""
    if name in ("", "."):
        raise BadInput("the output path is empty or a folder", "give it as -o FILE")
    try:
        exists = os.path.lexists(path)
        if exists and path.is_symlink():
            path = Path(os.path.realpath(path))
            exists = exists and (path.exists() or not overwrite)
        if path.is_dir():
            raise BadInput(f"{name}: is a folder, not a file", "give a file name in it")
        if exists and not overwrite:
            raise _exists_already(name)
        if exists and not stat.S_ISREG(path.stat().st_mode):
            # Replacing a device or a pipe would remove it.
            raise BadInput(f"{name}: is not a regular file", "give the name of a file")
        if exists and not os.access(path, os.W_OK):
            raise BadInput(f"{name}: is write-protected", "choose another name, or chmod u+w it")
        if not path.parent.is_dir():
            folder = shown_path(path.parent)
            if path.parent.exists():
                raise BadInput(f"{name}: {folder} is not a folder")
            raise BadInput(f"{name}: there is no folder {folder}", f"mkdir -p {folder}")
    except (OSError, ValueError) as error:
        raise _cannot_write(name, error) from error
    return path


def _write_whole(path: Path, data: bytes, *, mode: int | None) -> None:
    # Not tempfile.mkstemp: that is always private, and a new file should follow the umask.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
        if mode is not None and hasattr(os, "fchmod"):
            os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _take_free_name(temporary: Path, target: Path, name: str) -> None:
    """Gives ``temporary`` the name ``target``, unless someone has it by now."""
    try:
        os.link(temporary, target)
        return
    except FileExistsError:
        raise _exists_already(name) from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    try:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        raise _exists_already(name) from None
    unfinished.reserved(temporary)
    try:
        os.replace(temporary, target)
    except BaseException:
        # The empty placeholder is ours; leave nothing half-done behind.
        with contextlib.suppress(OSError):
            target.unlink()
        raise


def _mode_of(path: Path) -> int | None:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None


def _flush_folder(folder: Path) -> None:
    """Makes the new name itself survive a power cut, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exists_already(name: str) -> BadInput:
    return BadInput(f"{name}: exists already and is kept", "add --force to replace it")


def _cannot_write(name: str, error: Exception) -> BadInput:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    hint = ""
    if isinstance(error, PermissionError):
        hint = "choose another folder with -o, or make this one writable"
    return BadInput(f"{name}: cannot be written: {why}", hint)
