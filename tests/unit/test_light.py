"""JSON and SHA-256 by the interpreter's own C code say what json and hashlib say (shim/light.py)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from shim import light

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*/*.json")), ids=lambda path: path.stem)
def test_it_reads_what_json_reads(file: Path) -> None:
    """Whole specs."""
    assert light.loads(file.read_bytes()) == json.loads(file.read_bytes())


@pytest.mark.parametrize("text", ['""', " [1, -2.5e3, true, null] \n", '{"\\u00e9\\ud83d\\ude00": {"a": ["\\n"]}}', "0", "{}"])
def test_small_texts(text: str) -> None:
    """Escapes, numbers, white space."""
    assert light.loads(text.encode()) == json.loads(text)


@pytest.mark.parametrize("text", ["", "{", '{"a": }', "[1,]", "tru", "{} x", '"\x01"', "'a'", "\xff"])
def test_what_is_no_json_is_refused(text: str) -> None:
    """As json refuses it."""
    with pytest.raises(ValueError):
        light.loads(text.encode("latin-1"))


@pytest.mark.parametrize("value", [{}, {"a": [1, -2.5, None, True, {}, ""]}, {"é": "\udc80\n\"", "b": {"c": 2**70}}])
def test_it_writes_what_json_writes(value: dict[str, object]) -> None:
    """An environment's bytes that are no UTF-8 too (surrogates)."""
    assert light.dumps(value) == json.dumps(value).encode()


def test_what_json_cannot_write() -> None:
    """Is refused as json refuses it."""
    with pytest.raises(TypeError, match="not JSON serializable"):
        light.dumps({"a": object()})


def test_the_digest() -> None:
    """The same as hashlib's."""
    assert light.sha256_hex(b"abc") == hashlib.sha256(b"abc").hexdigest()
