"""What the kernel refuses a process from here on, for good: changes of files by Landlock, calls by seccomp. Linux only.

Sources: include/uapi/linux/{landlock,seccomp,filter,audit}.h and the tables of system calls for x86-64 and aarch64 (the
generic one); landlock(7), seccomp(2).

A filter of system calls sees numbers and arguments, no memory behind a pointer. So `openat2`, whose flags lie in
memory, and io_uring, which makes calls without making them, are refused as a whole.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446
LANDLOCK_VERSION = 1  # a flag: asks for the version instead of making a ruleset
LANDLOCK_CHANGES = 0x1FF2  # version 1 without execute (1), read file (4) and read folder (8)
LANDLOCK_WRITE_FILE, LANDLOCK_TRUNCATE, LANDLOCK_IOCTL_DEV = 1 << 1, 1 << 14, 1 << 15
LANDLOCK_TCP = 0x3  # bind and connect
LANDLOCK_SCOPES = 0x3  # abstract Unix sockets and signals to processes outside

SECCOMP_SET_MODE_FILTER, SECCOMP_ALL_THREADS = 1, 1
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # of the filter's machine
ALLOW, REFUSE = 0x7FFF0000, 0x00050001  # SECCOMP_RET_ERRNO with EPERM
NUMBER, ARCH, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; the low half of an argument comes first
X32 = 0x40000000
O_TRUNC = 0x200
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # the name of its ABI, its column below

# numbers on x86-64 and on aarch64, None where the call does not exist
Numbers = dict[str, tuple[int | None, int | None]]
REFUSED: Numbers = {
    # what a file is, but for its content
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "utimensat": (280, 88), "futimesat": (261, None),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466),
    "file_setattr": (469, 469), "truncate": (76, 45), "creat": (85, None), "openat2": (437, 437),
    # other programs and other processes
    "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    # ways around a filter
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
}  # fmt: skip
REFUSED_ON_CPU: Numbers = {  # a GPU's driver talks to its services by such
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195),
    "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "mq_open": (240, 180), "mq_unlink": (241, 181),
}  # fmt: skip
# F_SETOWN, F_SETSIG, F_SETOWN_EX: a signal to anybody, sent by a descriptor
FCNTL_REFUSED = (8, 10, 15)
# FIOSETOWN and SIOCSPGRP, the same; FS_IOC_SETFLAGS, _SETVERSION, _FSSETXATTR, _ENABLE_VERITY, change a file for good
IOCTL_REFUSED = (0x8901, 0x8902, 0x40086602, 0x40087602, 0x401C5820, 0x40806685)
IOCTL_ON_CPU = (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A call judged by one argument. values: those it is refused for, or, with `only`, alone allowed for; bits: refused
    where one of them is set."""

    call: tuple[int | None, int | None]
    argument: int
    values: tuple[int, ...] = ()
    only: bool = False
    bits: int = 0


def forbid_changes(device: str) -> None:
    """Landlock: no file anywhere is written, cut, made, removed or linked.

    It holds for the calling thread and those it starts. device: what is no CPU is a file that must be opened for
    writing, and commanded. Nothing happens below Linux 5.13 and where Landlock is switched off.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_VERSION)
    if version < 1:
        return
    rules = _landlock_rules(version, device)
    ruleset = libc.syscall(LANDLOCK_CREATE_RULESET, rules, ctypes.c_size_t(len(rules)), 0)
    if ruleset >= 0:
        libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0)
        os.close(ruleset)


def _landlock_rules(version: int, device: str) -> bytes:
    """struct landlock_ruleset_attr, as long as this version of Landlock knows it."""
    files = LANDLOCK_CHANGES
    files |= LANDLOCK_TRUNCATE if version >= 3 else 0
    files |= LANDLOCK_IOCTL_DEV if version >= 5 else 0
    if device != "cpu":
        files &= ~(LANDLOCK_WRITE_FILE | LANDLOCK_IOCTL_DEV)
    words = [files, *([LANDLOCK_TCP] if version >= 4 else []), *([LANDLOCK_SCOPES] if version >= 6 else [])]
    return struct.pack(f"={len(words)}Q", *words)


def forbid_calls(device: str) -> bool:
    """Seccomp: the calls above answer EPERM from here on, in all threads; whether that holds.

    The process must have given up new privileges. Not done on other processors than x86-64 and aarch64.
    """
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in MACHINES or sys.byteorder != "little" or sys.maxsize < 1 << 32:
        return False
    steps = _program(machine, device)
    code = ctypes.create_string_buffer(b"".join(steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    seccomp = {"x86_64": 317, "aarch64": 277}[machine]
    return bool(libc.syscall(seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_ALL_THREADS, program) == 0)


def _program(machine: str, device: str) -> list[bytes]:
    """The filter's instructions."""
    arch, column = MACHINES[machine]
    steps = [_step(LOAD, ARCH), _step(EQUAL, arch, 1, 0), _step(RETURN, REFUSE), _step(LOAD, NUMBER)]
    if machine == "x86_64":
        steps += [_step(AT_LEAST, X32, 0, 1), _step(RETURN, REFUSE)]
    for call in [*REFUSED.values(), *(REFUSED_ON_CPU.values() if device == "cpu" else ())]:
        number = call[column]
        if number is not None:
            steps += [_step(EQUAL, number, 0, 1), _step(RETURN, REFUSE)]
    for rule in _rules(device):
        number = rule.call[column]
        if number is not None:
            body = list(_body(rule))
            steps += [_step(EQUAL, number, 0, len(body)), *body]
    return [*steps, _step(RETURN, ALLOW)]


def _rules(device: str) -> Sequence[Rule]:
    """The calls that are judged by what they are asked for."""
    own = os.getpid()
    ioctl = (16, 29)
    return [
        Rule(call=(62, 129), argument=0, values=(own,), only=True),  # kill
        Rule(call=(234, 131), argument=0, values=(own,), only=True),  # tgkill, by which abort ends a process
        Rule(call=(302, 261), argument=0, values=(0, own), only=True),  # prlimit64
        Rule(call=(72, 25), argument=1, values=FCNTL_REFUSED),
        Rule(call=(2, None), argument=1, bits=O_TRUNC),  # open
        Rule(call=(257, 56), argument=2, bits=O_TRUNC),  # openat
        Rule(call=ioctl, argument=1, values=IOCTL_ON_CPU, only=True)
        if device == "cpu"
        else Rule(call=ioctl, argument=1, values=IOCTL_REFUSED),
    ]


def _body(rule: Rule) -> Iterator[bytes]:
    """Judge the call that a rule is about, to the end."""
    yield _step(LOAD, ARGUMENTS + 8 * rule.argument)
    listed, other = (ALLOW, REFUSE) if rule.only else (REFUSE, ALLOW)
    for value in rule.values:
        yield _step(EQUAL, value, 0, 1)
        yield _step(RETURN, listed)
    if rule.bits:
        yield _step(ANY_BIT, rule.bits, 0, 1)
        yield _step(RETURN, REFUSE)
    yield _step(RETURN, other)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """struct sock_filter; the jumps count the instructions to pass over."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
