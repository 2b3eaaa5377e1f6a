"""A program: read the tensors of one pickle where nothing can get out, and write safetensors.

    python -I pickle_sandbox.py IN.bin OUT.safetensors

Before the file is opened, the process gives up for good: sockets and other programs (a seccomp
filter), memory, processor time and the size of what it writes (resource limits). Then
``torch.load(weights_only=True)``, which makes tensors and no other objects. One JSON object on
standard output says what came of it. Imports nothing of this package. Linux on x86-64 and ARM64.
"""

import ctypes
import json
import os
import platform
import struct
import sys

_X86 = {
    "arch": 0xC000003E, "seccomp": 317,
    "denied": (41, 42, 43, 44, 46, 49, 50, 53, 57, 58, 59, 101, 311, 322, 425, 438),
}  # fmt: skip
_ARM = {
    "arch": 0xC00000B7, "seccomp": 277,
    "denied": (198, 199, 200, 201, 202, 203, 206, 211, 117, 221, 271, 281, 425, 438),
}  # fmt: skip
# socket, connect, accept, sendto, sendmsg, bind, listen, socketpair, fork and vfork, execve,
# ptrace, process_vm_writev, execveat, io_uring_setup, pidfd_getfd
MACHINES = {"x86_64": _X86, "aarch64": _ARM}

_NO_NEW_PRIVILEGES = 38
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 13  # EACCES
_X32 = 0x40000000  # calls of another numbering
_ROOM = 512 << 20  # bytes of memory beyond the file's, for what torch does once


def forbid(machine: dict) -> None:
    """Refuse these calls of the system from now on, in all threads; raises `OSError`."""
    denied = machine["denied"]
    last = len(denied) + 1  # instructions from the first test of a number to the refusal
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 0, last + 2, machine["arch"]), (_LOAD, 0, 0, 0)]
    steps.append((_AT_LEAST, last, 0, _X32))
    steps += [(_EQUAL, last - 1 - n, 0, number) for n, number in enumerate(denied)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if libc.syscall(machine["seccomp"], 1, 1, program) != 0:  # a filter, for all threads
        raise OSError(ctypes.get_errno(), "seccomp")


def limit(size: int) -> None:
    """Bound what the process may use for a file of a size in bytes."""
    import resource

    with open("/proc/self/statm") as file:
        present = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    seconds = 60 + size // 10_000_000
    for kind, most in (
        (resource.RLIMIT_AS, present + 4 * size + _ROOM),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 2 * size + (1 << 20)),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def convert(source: str, target: str) -> dict:
    """Do it; returns the answer."""
    import socket

    import torch
    from safetensors.torch import save_file

    machine = MACHINES.get(platform.machine())
    if sys.platform != "linux" or machine is None:
        return {"error": "no way here to keep a process off the network; convert it on Linux"}
    size = os.path.getsize(source)
    limit(size)
    try:
        forbid(machine)
        socket.socket()
    except PermissionError:
        pass  # as it must be
    except OSError as error:
        return {"error": f"the process cannot be kept off the network here ({error})"}
    else:
        return {"error": "the process cannot be kept off the network here"}
    tensors = torch.load(source, map_location="cpu", weights_only=True)
    if not isinstance(tensors, dict) or not tensors:
        return {"error": f"no tensors by name, but {type(tensors).__name__}"}
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            return {"error": f"{str(name)[:80]!r} is no tensor, but {type(tensor).__name__}"}
        if tensor.layout != torch.strided or tensor.is_quantized:
            return {"error": f"{name[:80]!r} is a sparse or quantised tensor"}
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > size:
        return {"error": f"{total} bytes of tensors in a file of {size}"}
    save_file({name: t.detach().clone().contiguous() for name, t in tensors.items()}, target)
    return {"tensors": len(tensors)}


if __name__ == "__main__":
    try:
        answer = convert(*sys.argv[1:])
    except BaseException as error:  # every error is reported to the parent process
        answer = {"error": f"{type(error).__name__}: {str(error).split(chr(10))[0][:300]}"}
    print(json.dumps(answer))
