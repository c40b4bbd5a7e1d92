"""Kernel modules: what each one needs (its .modinfo section), in which order to load a set of them, depmod's index files.

Pure: bytes and names in, order and text out; the package has no modules.dep, because depmod runs at its installation.
Knows no package and no image. Called by stock.py.
"""
from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass


class ModuleError(ValueError):
    """A module that is not there, or not a module; the message names it."""


@dataclass(frozen=True)
class Module:
    """One module: `path` below /lib/modules/RELEASE, names of those it needs, of those it would like first, aliases."""

    name: str
    path: str
    depends: tuple[str, ...]
    wishes: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


def plain(name: str) -> str:
    """The canonical spelling of a module's name: the kernel does not tell - from _."""
    return name.replace("-", "_")


def describe(path: str, data: bytes) -> Module:
    """The Module of an uncompressed .ko file; ModuleError if it has no .modinfo."""
    fields: dict[str, list[str]] = {}
    for item in _modinfo(path, data).split(b"\0"):
        key, _, value = item.decode(errors="replace").partition("=")
        fields.setdefault(key, []).append(value)
    depends = tuple(plain(name) for name in ",".join(fields.get("depends", [])).split(",") if name)
    softdeps = [word for text in fields.get("softdep", []) for word in _before(text)]
    name = plain(path.rpartition("/")[2].partition(".")[0])
    return Module(name, path, depends, tuple(plain(word) for word in softdeps), tuple(fields.get("alias", [])))


def load_order(wanted: Iterable[str], modules: Mapping[str, Module], builtin: frozenset[str] = frozenset()) -> list[Module]:
    """The wanted modules and all that they need, each after what it needs.

    A name in `builtin` is in the kernel already. ModuleError names what is neither there nor built in.
    """
    order: dict[str, Module] = {}
    for name in wanted:
        _visit(plain(name), modules, builtin, order, ())
    return list(order.values())


def modules_dep(modules: Iterable[Module], known: Mapping[str, Module], builtin: frozenset[str] = frozenset()) -> str:
    """depmod's modules.dep: `FILE: NEEDED ...`, to be loaded from right to left."""
    lines = []
    for module in sorted(modules, key=lambda one: one.path):
        needed = load_order([module.name], known, builtin)[:-1]
        lines.append(" ".join([f"{module.path}:", *(one.path for one in reversed(needed))]))
    return "\n".join(lines) + "\n"


def modules_alias(modules: Iterable[Module]) -> str:
    """depmod's modules.alias: by which names the kernel asks for them (`alias net-pf-40 vsock`)."""
    lines = sorted({f"alias {alias} {module.name}" for module in modules for alias in module.aliases})
    return "\n".join(lines) + "\n"


def _visit(name: str, modules: Mapping[str, Module], builtin: frozenset[str], order: dict[str, Module],
           path: tuple[str, ...]) -> None:  # fmt: skip
    if name in order or name in builtin:
        return
    if name in path:
        raise ModuleError(f"modules need each other: {' -> '.join([*path, name])}")
    if name not in modules:
        raise ModuleError(f"module {name} is not there" + (f", which {path[-1]} needs" if path else ""))
    module = modules[name]
    for needed in [*(wish for wish in module.wishes if wish in modules), *module.depends]:
        _visit(needed, modules, builtin, order, (*path, name))
    order[name] = module


def _before(softdep: str) -> Iterator[str]:
    """`a` and `b` of the softdep text "pre: a b post: c"."""
    wanted = False
    for word in softdep.split():
        if word.endswith(":"):
            wanted = word == "pre:"
        elif wanted:
            yield word


def _modinfo(path: str, data: bytes) -> bytes:
    if data[:6] != b"\x7fELF\x02\x01":
        raise ModuleError(f"{path}: not a 64-bit kernel module")
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count, names_at = struct.unpack_from("<HHH", data, 58)
    sections = [struct.unpack_from("<IIQQQQ", data, table + number * size) for number in range(count)]
    names = sections[names_at][4]
    for name, _kind, _flags, _address, offset, length in sections:
        start = names + name
        if data[start : data.index(b"\0", start)] == b".modinfo":
            return data[offset : offset + length]
    raise ModuleError(f"{path}: no .modinfo section")
