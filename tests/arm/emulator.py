"""Runs a static Linux program of 64-bit ARM on any machine, in Unicorn: as much of a system as one thread asks for."""

from __future__ import annotations

import struct
from pathlib import Path

import unicorn
from unicorn import arm64_const as arm

PAGE = 4096
STACK, STACK_BYTES = 0x7FFF00000000, 8 << 20
HEAP = 0x500000000000
LOADED = 1  # a program header's type: a segment that lies in memory
# auxiliary vector: where the program's headers are, the size of one, how many, bytes in a page, random bytes
AT_PHDR, AT_PHENT, AT_PHNUM, AT_PAGESZ, AT_RANDOM = 3, 4, 5, 6, 25
FLOATING_POINT_ON = 3 << 20
ENOSYS = 38


class Machine:
    """A processor, its memory and a program in it, which reads `given` on standard input."""

    def __init__(self, program: Path, given: bytes) -> None:
        self.given, self.written, self.status = given, bytearray(), None
        self._heap = HEAP
        self._processor = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        self._processor.ctl_set_cpu_model(arm.UC_CPU_ARM64_MAX)
        self._processor.reg_write(arm.UC_ARM64_REG_CPACR_EL1, FLOATING_POINT_ON)
        self._processor.hook_add(unicorn.UC_HOOK_INTR, self._on_call)
        self._entry, headers = self._load(program.read_bytes())
        self._start_stack({**headers, AT_PAGESZ: PAGE})

    def run(self) -> bytes:
        """What the program writes to standard output. RuntimeError: it ended with another status than 0."""
        self._processor.emu_start(self._entry, 0)
        if self.status != 0:
            raise RuntimeError(f"the program ended with status {self.status}")
        return bytes(self.written)

    def _load(self, file: bytes) -> tuple[int, dict[int, int]]:
        """Put the program's segments where they belong: its first instruction, and its entries of the vector."""
        entry, table = struct.unpack_from("<QQ", file, 24)
        size, count = struct.unpack_from("<HH", file, 54)
        mapped: set[int] = set()
        base = 0
        for k in range(count):
            kind, _, offset, address, _, stored, length, _ = struct.unpack_from("<IIQQQQQQ", file, table + k * size)
            if kind != LOADED:
                continue
            if offset == 0:
                base = address
            pages = set(range(address // PAGE, (address + length - 1) // PAGE + 1)) - mapped
            for page in pages:
                self._processor.mem_map(page * PAGE, PAGE)
            mapped |= pages
            self._processor.mem_write(address, file[offset : offset + stored])
        return entry, {AT_PHDR: base + table, AT_PHENT: size, AT_PHNUM: count}

    def _start_stack(self, vector: dict[int, int]) -> None:
        """The stack as a program finds it: how many arguments, those, the environment, the auxiliary vector."""
        self._processor.mem_map(STACK, STACK_BYTES)
        top = STACK + STACK_BYTES - PAGE
        entries = {**vector, AT_RANDOM: top, 0: 0}
        words = [0, 0, 0, *(word for entry in entries.items() for word in entry)]
        self._processor.reg_write(arm.UC_ARM64_REG_SP, top - PAGE)
        self._processor.mem_write(top - PAGE, struct.pack(f"<{len(words)}Q", *words))

    def _on_call(self, processor: unicorn.Uc, *_: object) -> None:
        """One system call: its number is in x8, what it is given in x0 to x5, what it answers in x0."""
        number = processor.reg_read(arm.UC_ARM64_REG_X8)
        given = [processor.reg_read(register) for register in range(arm.UC_ARM64_REG_X0, arm.UC_ARM64_REG_X0 + 6)]
        call = CALLS.get(number)
        answer = call(self, *given) if call is not None else -ENOSYS
        processor.reg_write(arm.UC_ARM64_REG_X0, answer % (1 << 64))

    def _read(self, _: int, to: int, count: int, *__: int) -> int:
        part, self.given = self.given[:count], self.given[count:]
        self._processor.mem_write(to, part)
        return len(part)

    def _write(self, _: int, start: int, count: int, *__: int) -> int:
        self.written += self._processor.mem_read(start, count)
        return count

    def _map(self, _: int, length: int, *__: int) -> int:
        start, pages = self._heap, -(-length // PAGE)
        self._processor.mem_map(start, pages * PAGE)
        self._heap += (pages + 1) * PAGE  # one between that is not there
        return start

    def _unmap(self, start: int, length: int, *_: int) -> int:
        self._processor.mem_unmap(start, -(-length // PAGE) * PAGE)
        return 0

    def _exit(self, status: int, *_: int) -> int:
        self.status = status
        self._processor.emu_stop()
        return 0

    def _processors(self, _: int, __: int, to: int, *___: int) -> int:
        """The set of processors to run on: the first."""
        self._processor.mem_write(to, struct.pack("<Q", 1))
        return 8


CALLS = {  # by the numbers that Linux has for them on ARM
    63: Machine._read,
    64: Machine._write,
    93: Machine._exit,
    94: Machine._exit,  # of all threads
    123: Machine._processors,
    215: Machine._unmap,
    222: Machine._map,
}
