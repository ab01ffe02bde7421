"""A file system of its own for a program: an empty one in memory, with what it may see bound into it.

Runs in the launcher, as root of a mount namespace; it imports the standard library alone. What is not bound is not
there: no sockets of services, no names of the user's files.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterable
from contextlib import suppress

PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "loongarch64": 41}
MOUNT_SETATTR = 442
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
ATTR_RDONLY, ATTR_NOSUID = 1, 2
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MNT_DETACH = 2, 4, 4096, 16384, 2
LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
DEEPEST = 40


class _Attributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user"))


def supported() -> bool:
    """Whether this file knows the machine's way to change the root."""
    return platform.machine() in PIVOT_ROOT


def enter(
    base: str, size: int, *, read: Iterable[str], write: Iterable[str], frozen: Iterable[str], empty: Iterable[str]
) -> None:
    """Make the file system in `base` and make it this process's root.

    At most `size` bytes can be written to it. `read` and `write` are bound where they are, `frozen` read-only inside of
    them; `empty` are new folders that anyone may write to. Paths that are not there are left out.

    Raises:
        OSError: the kernel refused.
    """
    _mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NODEV, f"size={size},mode=755")
    for path in ("/dev", "/tmp", *empty):
        os.makedirs(base + path, exist_ok=True)
    for path in ("/tmp", *empty):
        os.chmod(base + path, 0o1777)
    for name, target in LINKS.items():
        os.symlink(target, f"{base}/dev/{name}")
    for path in read:
        _bind(base, path, read_only=True)
    for path in write:
        _bind(base, path, read_only=False)
    for path in frozen:
        _bind(base, path, read_only=True, over=True)
    _pivot(base)


def _bind(base: str, path: str, *, read_only: bool, over: bool = False) -> None:
    target = _place(base, path, 0, over=over)
    if target is None:
        return
    _mount(path, target, None, MS_BIND | MS_REC, None)
    attributes = _Attributes(ATTR_NOSUID | (ATTR_RDONLY if read_only else 0), 0, 0, 0)
    _checked(
        _libc().syscall(
            MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE, ctypes.byref(attributes), ctypes.sizeof(attributes)
        ),
        path,
    )


def _place(base: str, path: str, depth: int, *, over: bool) -> str | None:
    """Make the way to `path` in the new root, with the links on it; where what it leads to belongs, or None. With
    `over` that is also where a folder that is bound already holds it."""
    here = "/"
    parts = [part for part in path.split("/") if part]
    for index, part in enumerate(parts):
        here = os.path.join(here, part)
        if os.path.islink(here):
            leads = os.readlink(here)
            with suppress(FileExistsError):
                os.symlink(leads, base + here)
            rest = os.path.join(os.path.dirname(here), leads, *parts[index + 1 :])
            return None if depth > DEEPEST else _place(base, os.path.normpath(rest), depth + 1, over=over)
        if os.path.isdir(here):
            with suppress(FileExistsError):
                os.mkdir(base + here, 0o755)
        elif not os.path.lexists(here):
            return None
    if not os.path.isdir(here) and os.path.lexists(base + here):
        return base + here if over else None  # A folder that is bound already holds it.
    if not os.path.isdir(here):
        os.close(os.open(base + here, os.O_CREAT | os.O_WRONLY, 0o644))
    return base + here


def _pivot(base: str) -> None:
    old = f"{base}/.old"
    os.mkdir(old)
    number = PIVOT_ROOT[platform.machine()]
    _checked(_libc().syscall(number, base.encode(), old.encode()), "pivot_root")
    os.chdir("/")
    _checked(_libc().umount2(b"/.old", MNT_DETACH), "umount")
    os.rmdir("/.old")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None) -> None:
    kind_, options_ = (None if text is None else text.encode() for text in (kind, options))
    _checked(_libc().mount(source.encode(), target.encode(), kind_, ctypes.c_ulong(flags), options_), target)


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
