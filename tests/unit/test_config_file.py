"""configuration.toml: its documentation is complete, and what is wrong in a file is said with its place."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shim import config
from shim.errors import ConfigError

SAMPLE = Path(__file__).resolve().parents[2] / "configs/configuration.toml"


def write(directory: Path, text: str) -> str:
    """A configuration file with this text; its path."""
    path = directory / "configuration.toml"
    path.write_text(text)
    return str(path)


def refused(path: str) -> ConfigError:
    """The error with which a file is refused."""
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    return caught.value


def test_the_sample_documents_every_key_with_its_default() -> None:
    """Uncommented, the shipped file holds exactly the defaults of all keys, in the order of the code."""
    text = re.sub(r"^# (?=[a-z_]+ = )", "", SAMPLE.read_text(), flags=re.M)
    documented = tomllib.loads(text)
    assert documented == msgspec.json.decode(msgspec.json.encode(config.Config()))
    assert list(documented) == list(config.SECTIONS)


def test_the_sample_explains_every_key() -> None:
    """Each key stands under a comment (one comment may serve keys that follow each other)."""
    block = ""
    for line in SAMPLE.read_text().splitlines():
        is_key = re.match(r"# [a-z_]+ = ", line)
        assert not is_key or block.strip("# "), f"no explanation above: {line}"
        block = "" if not line or line.startswith("[") else block + line


def test_the_sample_itself_means_the_defaults() -> None:
    """All keys are commented out."""
    assert config.load(str(SAMPLE)) == config.Config()


@pytest.mark.parametrize(
    ("text", "line", "key", "allowed"),
    [
        ('[hypervisor]\npath = "/q"\nmachine_type = "pc"', 3, "hypervisor.machine_type", "'q35', 'microvm'"),
        ("[hypervisor]\n\nkvm = true\n", 3, "hypervisor.kvm", "accelerator"),
        ("[gest]\n", 1, "gest", "guest"),
        ("[hypervisor]\ndefault_vcpus = -1\n", 2, "hypervisor.default_vcpus", "at least 0"),
        ("[hypervisor]\ndefault_memory = 1.5\n", 2, "hypervisor.default_memory", "int"),
        ('[guest]\nkernel = "vmlinux"\n', 2, "guest.kernel", "^(/|$)"),
        ("[guest]\nboot_timeout = 0\n", 2, "guest.boot_timeout", "more than 0"),
        ("[share]\nextra_args = [1]\n", 2, "share.extra_args[0]", "tuple"),
    ],
)
def test_a_bad_value_is_refused_with_its_place(tmp_path: Path, text: str, line: int, key: str, allowed: str) -> None:
    """File, line, key and what would be allowed are in the error."""
    path = write(tmp_path, text)
    error = refused(path)
    assert (error.file, error.line, error.key) == (path, line, key)
    assert allowed in error.allowed
    assert f"{path}:{line}" in str(error)


def test_what_is_not_toml_is_refused_with_its_line(tmp_path: Path) -> None:
    """A syntax error names file and line."""
    path = write(tmp_path, "[hypervisor\n")
    assert path in str(refused(path)) and "line 1" in str(refused(path))


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument or HAKO_CONFIG that leads nowhere does not mean the defaults."""
    missing = str(tmp_path / "none.toml")
    assert "No such file" in str(refused(missing))
    monkeypatch.setenv("HAKO_CONFIG", missing)
    with pytest.raises(ConfigError):
        config.load()


def test_drop_ins_are_merged_in_order(tmp_path: Path) -> None:
    """config.d/*.toml change single keys; the last one wins; an error names the drop-in."""
    path = write(tmp_path, "[hypervisor]\ndefault_memory = 512\ndefault_vcpus = 2\n")
    drop_ins = tmp_path / "config.d"
    drop_ins.mkdir()
    (drop_ins / "10-a.toml").write_text("[hypervisor]\ndefault_memory = 768\n")
    (drop_ins / "20-b.toml").write_text("[hypervisor]\ndefault_memory = 1024\n")
    (drop_ins / "ignored.txt").write_text("nonsense")
    merged = config.load(path)
    assert (merged.hypervisor.default_memory, merged.hypervisor.default_vcpus) == (1024, 2)
    (drop_ins / "30-c.toml").write_text("[hypervisor]\nnope = 1\n")
    assert refused(path).file == str(drop_ins / "30-c.toml")


def test_values_cannot_be_changed(tmp_path: Path) -> None:
    """A loaded configuration is frozen."""
    loaded: Any = config.load(write(tmp_path, ""))
    with pytest.raises(AttributeError):
        loaded.hypervisor.default_memory = 1
