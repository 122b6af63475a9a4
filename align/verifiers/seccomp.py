"""A filter of system calls for the sandbox: what would get around its limits is refused.

Memory that belongs to no process (shared segments, queues, memory files) is in no process's limit,
a new user namespace may mount file systems of any size, the kernel's keyrings are the user's own,
and a network namespace does not hold every kind of socket: those of virtual machines (AF_VSOCK)
reach the host. Of sockets only AF_UNIX is left, which asyncio needs. The filter is classic BPF over
`struct seccomp_data` (Linux, seccomp(2)): the number of the call lies at byte 0, the machine at
byte 4, the lower half of the first argument at byte 16 (both machines are little-endian).
"""

from __future__ import annotations

import errno
import platform
import struct

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_* of linux/audit.h."""

REFUSED = {
    "x86_64": {
        "shmget": 29,
        "semget": 64,
        "msgget": 68,
        "ptrace": 101,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "unshare": 272,
        "setns": 308,
        "memfd_create": 319,
        "bpf": 321,
        "io_uring_setup": 425,
    },
    "aarch64": {
        "unshare": 97,
        "ptrace": 117,
        "msgget": 186,
        "semget": 190,
        "shmget": 194,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "setns": 268,
        "memfd_create": 279,
        "bpf": 280,
        "io_uring_setup": 425,
    },
}
"""Numbers of asm/unistd_64.h and asm-generic/unistd.h."""

SOCKETS = {
    "x86_64": {"socket": 41, "socketpair": 53},
    "aarch64": {"socket": 198, "socketpair": 199},
}
"""The calls whose first argument is the family of a socket."""

AF_UNIX = 1

X32 = 0x40000000
"""From here on, numbers are those of another ABI of the same machine."""

KILL, ERRNO, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06


def program() -> bytes | None:
    """The filter for this machine; None: its numbers are not known here."""
    machine = platform.machine()
    if machine not in MACHINES:
        return None
    numbers, sockets = sorted(REFUSED[machine].values()), SOCKETS[machine]
    steps = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, MACHINES[machine]),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, len(numbers) + 5, 0, X32),
        *((_EQUAL, len(numbers) + 4 - i, 0, number) for i, number in enumerate(numbers)),
        (_EQUAL, 1, 0, sockets["socket"]),
        (_EQUAL, 0, 2, sockets["socketpair"]),
        (_LOAD, 0, 0, 16),
        (_EQUAL, 0, 1, AF_UNIX),
        (_RETURN, 0, 0, ALLOW),
        (_RETURN, 0, 0, ERRNO | errno.EPERM),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
