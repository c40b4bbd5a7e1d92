"""JSON and SHA-256 without what their modules load first: 9 ms for json (re, enum), 3 ms for hashlib (OpenSSL).

Owns: three calls into the interpreter's own C code, with the modules proper as a way out where that is not there. Must
not know: what is read. Used by `start`, which containerd waits for with every container; everybody else takes the modules.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


class _Context:
    """What json.JSONDecoder is to the scanner."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(name: str) -> NoReturn:
        """NaN and the like: for json."""
        raise ValueError(name)


def loads(data: bytes) -> Any:
    """What json.loads makes of a text in UTF-8, its ValueError included."""
    try:
        from _json import make_scanner

        text = data.decode().strip()
        value, end = make_scanner(_Context)(text, 0)  # type: ignore[arg-type]
        if end == len(text):
            return value
    except (ImportError, StopIteration, SystemError, ValueError):
        pass  # SystemError: the scanner's own error is a class of a module that is not loaded
    import json

    return json.loads(data)


def dumps(value: dict[str, Any]) -> bytes:
    """What json.dumps makes of `value`: dictionaries, lists, strings, numbers, None."""
    try:
        from _json import encode_basestring_ascii, make_encoder

        sort_keys, skip_keys, allow_nan = False, False, True
        encode = make_encoder(None, _refuse, encode_basestring_ascii, None, ": ", ", ", sort_keys, skip_keys, allow_nan)
        return "".join(encode(value, 0)).encode()
    except (ImportError, TypeError):
        import json

        return json.dumps(value).encode()


def _refuse(value: Any) -> NoReturn:
    """What is no JSON: for json."""
    raise TypeError


def sha256_hex(data: bytes) -> str:
    """The SHA-256 of `data` in hex digits."""
    try:
        try:
            from _sha2 import sha256  # type: ignore[import-not-found]  # Python 3.12 and later
        except ImportError:
            from _sha256 import sha256  # type: ignore[import-not-found]
    except ImportError:
        from hashlib import sha256
    digest: str = sha256(data).hexdigest()
    return digest
