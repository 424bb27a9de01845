r"""Writes that happen whole or not at all, and what a file holds."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    r"""Gives a temporary path beside `path`, and renames it to `path` if the block succeeds.

    If the block fails nothing is left. The temporary name keeps the suffix of `path`.

    Raises:
        OSError: The folder cannot be written to or the disk is full; the message names the cure.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(descriptor)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}. {CURE}") from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}. {CURE}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def sole(folder: Path, what: str) -> Iterator[None]:
    r"""Lets no other process into a block that works in `folder`; a process that dies lets go.

    Where the system or the disk knows no locks, nobody is kept out.

    Arguments:
        folder: The folder, made if need be, and taken away if nothing was put there.
        what: What the block does, for the message.

    Raises:
        ValueError: Another process is in such a block.
    """
    if fcntl is None:
        yield
        return
    made, path = not folder.exists(), folder / ".lock"
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another process is {what} in {folder}. Wait for it, stop it, or choose another folder."
            ) from error
        except OSError:
            pass
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if made:
                with suppress(OSError):  # the block has put something there
                    folder.rmdir()


@contextmanager
def replaced(folder: Path, names: Collection[str]) -> Iterator[Path]:
    r"""Gives a temporary folder and puts it in place of `folder` if the block succeeds.

    Files of other than the given names are copied from the old folder. If the block fails nothing is changed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    fresh, old = scratch / "new", scratch / "old"
    try:
        fresh.mkdir()
        if folder.exists():
            ours = {os.fspath(folder): set(names)}
            shutil.copytree(
                folder, fresh, symlinks=True, ignore=lambda at, _: ours.get(os.fspath(at), set()), dirs_exist_ok=True
            )
        yield fresh
        for file in fresh.iterdir():
            if file.name in names:
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
        if folder.exists():
            os.rename(folder, old)
        os.rename(fresh, folder)
    finally:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        shutil.rmtree(scratch, ignore_errors=True)


def sha256(file: Path) -> str:
    r"""Returns the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


CURE = "Nothing was left behind; free some space or choose another folder, and run again."
