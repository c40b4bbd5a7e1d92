"""Leaves out of a shared object the libraries that it names but takes nothing from.

protobuf's wheel names libstdc++ and uses no symbol of it; loading it costs the guest 2.5 MB and, under TCG, tens of
milliseconds at each boot. Knows the ELF dynamic section (64-bit, little endian; elf(5)). Called by closure.py.
"""
from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_SYMTAB, _DT_VERNEED, _DT_VERNEEDNUM = 0, 1, 5, 6, 0x6FFFFFFE, 0x6FFFFFFF
_PT_LOAD, _PT_DYNAMIC = 1, 2
_SHT_DYNSYM = 11
_ENTRY = struct.Struct("<qQ")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")


class ElfError(ValueError):
    """Not a 64-bit little endian ELF file with a dynamic section."""


@dataclass(frozen=True)
class _Dynamic:
    offset: int
    entries: list[tuple[int, int]]


class SharedObject:
    """One dynamically linked file: which libraries it names, which symbols it lacks and which it has."""

    def __init__(self, data: bytes, name: str = "") -> None:
        """Raises ElfError; `name` is for its message."""
        if data[:6] != b"\x7fELF\x02\x01":
            raise ElfError(f"{name}: not a 64-bit little endian ELF file")
        self.data = data
        self._segments = list(self._headers(32, 54, _SEGMENT))
        self._dynamic = self._find_dynamic(name)
        self._strings = self._offset(self._value(_DT_STRTAB))

    def needed(self) -> list[str]:
        """The libraries it names, in order."""
        return [self._string(value) for tag, value in self._dynamic.entries if tag == _DT_NEEDED]

    def undefined(self) -> set[str]:
        """Symbols that another file must provide, the optional (weak) ones too."""
        return {name for name, section in self._symbols() if not section}

    def defined(self) -> set[str]:
        """Symbols that it has for others."""
        return {name for name, section in self._symbols() if section}

    def versioned_by(self) -> set[str]:
        """Libraries whose symbol versions it checks when it is loaded: these cannot be left out."""
        where = self._value(_DT_VERNEED)
        found: set[str] = set()
        position = self._offset(where) if where else 0
        for _ in range(self._value(_DT_VERNEEDNUM) if where else 0):
            _version, _count, file, _aux, following = struct.unpack_from("<HHIII", self.data, position)
            found.add(self._string(file))
            position += following
        return found

    def without(self, libraries: set[str]) -> bytes:
        """The file with these names taken out of its dynamic section (what `patchelf --remove-needed` does)."""
        kept = [(tag, value) for tag, value in self._dynamic.entries
                if tag != _DT_NEEDED or self._string(value) not in libraries]  # fmt: skip
        kept += [(_DT_NULL, 0)] * (len(self._dynamic.entries) - len(kept))
        section = b"".join(_ENTRY.pack(*entry) for entry in kept)
        start = self._dynamic.offset
        return self.data[:start] + section + self.data[start + len(section) :]

    def _headers(self, table_at: int, size_at: int, form: struct.Struct) -> Iterator[tuple[int, ...]]:
        (table,) = struct.unpack_from("<Q", self.data, table_at)
        size, count = struct.unpack_from("<HH", self.data, size_at)
        for number in range(count):
            yield form.unpack_from(self.data, table + number * size)

    def _find_dynamic(self, name: str) -> _Dynamic:
        for kind, _flags, offset, _virtual, _physical, size, _memory, _align in self._segments:
            if kind == _PT_DYNAMIC:
                entries = [_ENTRY.unpack_from(self.data, offset + at) for at in range(0, size, _ENTRY.size)]
                return _Dynamic(offset, entries)
        raise ElfError(f"{name}: statically linked")

    def _value(self, wanted: int) -> int:
        return next((value for tag, value in self._dynamic.entries if tag == wanted), 0)

    def _offset(self, address: int) -> int:
        for kind, _flags, offset, virtual, _physical, size, _memory, _align in self._segments:
            if kind == _PT_LOAD and virtual <= address < virtual + size:
                return offset + address - virtual
        raise ElfError(f"address {address:#x} is in no segment")

    def _string(self, at: int) -> str:
        start = self._strings + at
        return self.data[start : self.data.index(b"\0", start)].decode()

    def _symbols(self) -> Iterator[tuple[str, int]]:
        for _name, kind, _flags, _address, offset, size, *_rest in self._headers(40, 58, _SECTION):
            if kind == _SHT_DYNSYM:
                for at in range(offset, offset + size, _SYMBOL.size):
                    name, _info, _other, section, _value, _size = _SYMBOL.unpack_from(self.data, at)
                    yield self._string(name), section


def unused_libraries(data: bytes, libraries: dict[str, Path]) -> set[str]:
    """Names that the shared object `data` asks for without taking a symbol of theirs.

    `libraries`: file name to host path of what it would load. One that is not among them counts as used.
    """
    shared = SharedObject(data)
    wanted = shared.undefined() - {""}
    candidates = {name: libraries[name] for name in shared.needed() if name in libraries}
    return {name for name, path in candidates.items()
            if name not in shared.versioned_by()
            and not wanted & SharedObject(path.read_bytes(), name).defined()}  # fmt: skip


def without_unused(data: bytes, libraries: dict[str, Path]) -> bytes:
    """The shared object with the names of unused libraries taken out."""
    return SharedObject(data).without(unused_libraries(data, libraries))
