"""Makes `*_pb2.py` (light) and `*_pb2.pyi` of .proto files: `python -m agent.api.generate [--check] DIR`.

A developer's tool: needs grpcio-tools and never goes into the guest. Directories are relative to the
repository's root, from where .proto files also import each other ("agent/api/oci.proto").
google/protobuf/{any,empty,timestamp} come from protoc itself and live in agent.api. Run it after every change
of a .proto; a test compares.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from google.protobuf import descriptor_pb2

ROOT = Path(__file__).resolve().parents[2]
HOME = Path("agent/api")
WELL_KNOWN = tuple(f"google/protobuf/{name}.proto" for name in ("any", "empty", "timestamp"))

_BYTES_PER_LINE = 24


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="agent.api.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file would change")
    parser.add_argument("directory", nargs="*", type=Path, default=[HOME], help="relative to the repository")
    options = parser.parse_args(argv)
    stale = [
        (path, text)
        for directory in options.directory
        for path, text in generate(directory).items()
        if not (ROOT / path).exists() or (ROOT / path).read_text() != text
    ]
    for path, text in stale:
        print(f"{'stale' if options.check else 'wrote'}: {path}")
        if not options.check:
            (ROOT / path).write_text(text)
    return 1 if stale and options.check else 0


def generate(directory: Path) -> dict[Path, str]:
    """Path (relative to the repository) -> text, of all that is made from the .proto files of a directory."""
    protos = sorted(str(path.relative_to(ROOT)) for path in (ROOT / directory).rglob("*.proto"))
    if directory == HOME:
        protos += WELL_KNOWN
    files, stubs = _run_protoc(protos)
    enums = {enum for file in files for enum in _enum_names(file)}
    generated: dict[Path, str] = {}
    for file in files:
        if file.name in stubs:
            target = _module_path(file.name)
            generated[target.with_suffix(".py")] = _light_module(file)
            generated[target.with_suffix(".pyi")] = _typed_stub(stubs[file.name], file, enums)
    return generated


def _run_protoc(protos: list[str]) -> tuple[list[descriptor_pb2.FileDescriptorProto], dict[str, str]]:
    """Descriptors of the files and all that they import; protoc's type stub for each of the files."""
    import grpc_tools  # type: ignore[import-untyped]
    from grpc_tools import protoc

    includes = [f"-I{ROOT}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}"]
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        outputs = [f"--descriptor_set_out={out}/set", "--include_imports", f"--pyi_out={out}"]
        code = protoc.main(["protoc", *includes, *outputs, *protos])
        if code != 0:
            raise SystemExit(code)
        descriptors = descriptor_pb2.FileDescriptorSet.FromString((out / "set").read_bytes())
        stubs = {proto: (out / proto.replace(".proto", "_pb2.pyi")).read_text() for proto in protos}
    return list(descriptors.file), stubs


def _module_path(proto: str) -> Path:
    path = HOME / Path(proto).name if proto in WELL_KNOWN else Path(proto)
    return path.with_name(path.stem + "_pb2")


def _light_module(file: descriptor_pb2.FileDescriptorProto) -> str:
    _drop_default_json_names(file.message_type)
    imports = ["from agent.api import descriptors"]
    for dependency in file.dependency:
        path = _module_path(dependency)
        imports.append(f"from {'.'.join(path.parent.parts)} import {path.name}  # noqa: F401")
    lines = [
        f'"""Generated from {file.name} by agent/api/generate.py: do not edit."""',
        "",
        *sorted(imports),
        "",
        "descriptors.load(",
        *_byte_lines(file.SerializeToString(deterministic=True)),
        "    globals(),",
        ")",
        "",
    ]
    return "\n".join(lines)


def _byte_lines(data: bytes) -> list[str]:
    lines = [f"    {data[i : i + _BYTES_PER_LINE]!r}" for i in range(0, len(data), _BYTES_PER_LINE)]
    lines[-1] += ","
    return lines


def _drop_default_json_names(messages: Iterable[descriptor_pb2.DescriptorProto]) -> None:
    """protoc writes every field's JSON name; the runtime derives the default one by itself."""
    for message in messages:
        for field in message.field:
            if field.json_name == re.sub(r"_+(.?)", lambda m: m[1].upper(), field.name):
                field.ClearField("json_name")
        _drop_default_json_names(message.nested_type)


def _enum_names(file: descriptor_pb2.FileDescriptorProto) -> set[str]:
    def nested(message: descriptor_pb2.DescriptorProto) -> set[str]:
        names = {enum.name for enum in message.enum_type}
        return names.union(*(nested(inner) for inner in message.nested_type))

    top = {enum.name for enum in file.enum_type}
    return top.union(*(nested(message) for message in file.message_type))


def _typed_stub(text: str, file: descriptor_pb2.FileDescriptorProto, enums: set[str]) -> str:
    """protoc's stub, made to fit our modules and mypy --strict."""
    for proto in WELL_KNOWN:
        module = _module_path(proto).name
        text = text.replace(f"from google.protobuf import {module} as", f"from agent.api import {module} as")
    text = re.sub(r"^from .*(?:well_known_types|enum_type_wrapper).*\n", "", text, flags=re.M)
    text = re.sub(r", _well_known_types\.\w+\)", ")", text)
    text = re.sub(r"\b_Mapping\]", "_Mapping[str, object]]", text)
    text = _plain_enums(text, enums)
    text, aliases = _unshadow(text, {message.name for message in file.message_type})
    return f"# Generated from {file.name} by agent/api/generate.py: do not edit.\n{text}{aliases}"


def _plain_enums(text: str, enums: set[str]) -> str:
    """The light form has enum values as plain ints and no enum classes: the stub says so."""
    text = re.sub(
        r"^( *)class \w+\(int, metaclass=_enum_type_wrapper\.EnumTypeWrapper\):\n(?:\1    .*\n)+",
        "",
        text,
        flags=re.M,
    )
    for enum in enums:
        text = re.sub(rf"_Union\[(?:\w+\.)*{enum}, str\]", "int", text)
        text = re.sub(rf"(: |\[)(?:\w+\.)*{enum}(?=[\],\n])", r"\1int", text)
    return text


def _unshadow(text: str, messages: set[str]) -> tuple[str, str]:
    """Kata's `Process Process = 2` shadows the type in its class: use an alias made at the module's end."""
    shadowed = sorted(set(re.findall(r"^    (\w+): \1$", text, flags=re.M)) & messages)
    for name in shadowed:
        text = re.sub(rf"(: |\[){name}(?=[\],\n])", rf"\1_{name}_", text)
    return text, "".join(f"\n_{name}_ = {name}\n" for name in shadowed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
