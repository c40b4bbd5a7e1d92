"""What the agent needs of Python: byte code, extension modules, the interpreter, and the shared libraries of all these.

Owns the search (imports run for real under the guest's own interpreter, and the import statements inside functions)
and the compilation. Knows nothing of image formats. Called by image.py.
"""
from __future__ import annotations

import ast
import json
import marshal
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import elf
from commands import BuildError, run
from imports import imported

HERE = Path(__file__).resolve().parent
# The distribution's interpreter; `python3` on PATH may be a version manager's.
INTERPRETER = Path("/usr/bin/python3")
# Parts of the package `agent` that only the host runs: the ttrpc client, and what makes generated files.
HOST_ONLY = ("ttrpc/client.py", "generate*.py", "**/generate*.py", "**/test_*.py", "**/tests/**")
# Modules that C code imports by name: codecs of open(..., encoding=...) that are not built in; os is the landmark by
# which the interpreter finds its library (Modules/getpath.py), though it runs the frozen copy.
ALWAYS = ("encodings.ascii", "encodings.latin_1")
LANDMARK = "os"


@dataclass(frozen=True)
class Module:
    """A module with its file on the host; `extension` is a shared object, else it is a source."""

    name: str
    file: Path
    package: bool

    @property
    def extension(self) -> bool:
        """Whether the file is machine code."""
        return self.file.suffix == ".so"

    @property
    def relative(self) -> str:
        """The file's place below a directory of sys.path, without suffix."""
        return self.name.replace(".", "/") + ("/__init__" if self.package else "")


@dataclass(frozen=True)
class Python:
    """The interpreter (its real path on the host), its version and the modules that the agent needs."""

    binary: Path
    version: tuple[int, int]
    modules: tuple[Module, ...]

    @property
    def stdlib(self) -> str:
        """The standard library's directory, on the host as in the guest."""
        return f"/usr/lib/python{self.version[0]}.{self.version[1]}"


def agent_sources(agent: Path) -> list[Path]:
    """The Python files of the package that belong into the guest."""
    host_only = {path for pattern in HOST_ONLY for path in agent.glob(pattern)}
    return sorted(path for path in agent.rglob("*.py") if path not in host_only)


def module_name(agent: Path, path: Path) -> str:
    """`agent.linux.loop` for agent/linux/loop.py."""
    parts = path.relative_to(agent.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def find_python(agent: Path, site: Path, interpreter: Path = INTERPRETER) -> Python:
    """Everything that the package directory `agent` can import, with third-party modules from `site` (both on the host)."""
    if not interpreter.exists():
        raise BuildError(f"{interpreter} is missing; apt-get install python3")
    required, possible = _wanted(agent)
    request = marshal.dumps(([str(agent.parent), str(site)], sorted(required), sorted(possible)))
    answer = ast.literal_eval(run([interpreter, "-ISB", HERE / "collect_modules.py"], stdin=request).decode())
    modules = [Module(name, Path(file), package) for name, file, package in answer["modules"]]
    version = (int(answer["version"][0]), int(answer["version"][1]))
    landmark = Module(LANDMARK, Path(f"/usr/lib/python{version[0]}.{version[1]}/os.py"), package=False)
    return Python(interpreter.resolve(), version, (*modules, landmark))


def before_init(name: str) -> bool:
    """Whether the interpreter itself reads the module, before any code of ours can provide it."""
    return name == LANDMARK or name.partition(".")[0] == "encodings"


def namespace_packages(names: Iterable[str]) -> list[str]:
    """Packages without a file of their own (`google`), which the interpreter would look for in every directory."""
    known = set(names)
    parents = {name[:at] for name in known for at, letter in enumerate(name) if letter == "."}
    return sorted(parents - known)


def compile_all(python: Python, names: Sequence[tuple[Module, str]]) -> dict[str, bytes]:
    """Byte code of source modules, by name; each comes with the path that tracebacks shall show."""
    with tempfile.TemporaryDirectory(prefix="hako-pyc-") as scratch:
        jobs = [(str(module.file), f"{scratch}/{number}", shown) for number, (module, shown) in enumerate(names)]
        run([python.binary, "-ISB", HERE / "compile_modules.py"], stdin=json.dumps(jobs).encode())
        return {module.name: Path(job[1]).read_bytes() for (module, _), job in zip(names, jobs, strict=True)}


def shared_libraries(binaries: Iterable[Path]) -> dict[str, Path]:
    """File name to host path of every shared library that the binaries load, the dynamic loader included."""
    found: dict[str, Path] = {}
    for binary in sorted(set(binaries)):
        for name, path in re.findall(r"(?:(\S+) => )?(/\S+) \(0x", run(["ldd", binary]).decode()):
            found[name or Path(path).name] = Path(path)
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Extensions:
    """Content of each extension module by name, and the shared libraries (file name, host path) of all and of Python."""

    contents: dict[str, bytes]
    libraries: dict[str, Path]


def extensions(python: Python) -> Extensions:
    """The extension modules without the libraries that they name but do not use, and what is then left to load."""
    files = {module.name: module.file for module in python.modules if module.extension}
    libraries = shared_libraries(files.values())
    contents = {name: elf.without_unused(path.read_bytes(), libraries) for name, path in files.items()}
    with tempfile.TemporaryDirectory(prefix="hako-elf-") as scratch:
        copies = [Path(scratch) / name for name in contents]
        for copy in copies:
            copy.write_bytes(contents[copy.name])
        return Extensions(contents, shared_libraries([python.binary, *copies]))


def _wanted(agent: Path) -> tuple[set[str], set[str]]:
    required, possible = set(ALWAYS), set()
    for path in agent_sources(agent):
        name = module_name(agent, path)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        modules, names = imported(path.read_text(), package)
        required |= {name, *modules}
        possible |= names
    return required, possible
