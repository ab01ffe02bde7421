"""Landlock, by which a Linux process gives up rights to files for itself and all it starts.

The kernel's three calls, spelt out. This runs in the launcher, an interpreter without site-packages, so it imports the
standard library alone.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable

CREATE, ADD, RESTRICT = 444, 445, 446  # The same on every architecture.
VERSION_FLAG = 1
PATH_BENEATH = 1
TRUNCATE_ABI = 3  # Before it, what a program may not write it may still truncate.

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REFER, TRUNCATE, IOCTL = 1 << 13, 1 << 14, 1 << 15
ALL_BEFORE_REFER = (1 << 13) - 1
READS = EXECUTE | READ_FILE | READ_DIR
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL
TCP = 0b11
SCOPES = 0b11  # Abstract sockets, and signals to processes outside.


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """The kernel's Landlock version; 0 where there is none."""
    return max(0, _libc().syscall(CREATE, None, ctypes.c_size_t(0), VERSION_FLAG))


def restrict(read: Iterable[str], write: Iterable[str], *, network: bool) -> None:
    """Allow nothing but reading beneath `read` and everything beneath `write`; paths that are not there are left out.

    Without `network`, TCP is forbidden too where the kernel knows how. Needs no_new_privs.

    Raises:
        OSError: the kernel refused.
    """
    abi, libc = version(), _libc()
    if not abi:
        raise OSError("this kernel has no Landlock")
    handled = _rights(abi)
    attributes = _Ruleset(handled, 0 if network or abi < 4 else TCP, SCOPES if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _checked(libc.syscall(CREATE, ctypes.byref(attributes), ctypes.c_size_t(size), 0))
    try:
        for path in read:
            _allow(libc, ruleset, path, READS & handled)
        for path in write:
            _allow(libc, ruleset, path, handled)
        _checked(libc.syscall(RESTRICT, ruleset, 0))
    finally:
        os.close(ruleset)


def _rights(abi: int) -> int:
    later = ((2, REFER), (3, TRUNCATE), (5, IOCTL))
    return ALL_BEFORE_REFER | sum(right for since, right in later if abi >= since)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(opened).st_mode):
            rights &= FILE_RIGHTS
        rule = _Beneath(rights, opened)
        _checked(libc.syscall(ADD, ruleset, PATH_BENEATH, ctypes.byref(rule), 0))
    finally:
        os.close(opened)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
