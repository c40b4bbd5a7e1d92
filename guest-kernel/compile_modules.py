"""Run by the guest's own interpreter (python3 -ISB): compiles sources to byte code that is never checked against them.

Reads a JSON list of [source file, .pyc file to write, file name for tracebacks] from standard input. Documentation
strings and assertions are left out. Called by closure.py.
"""
import json
import py_compile
import sys

for source, target, name in json.load(sys.stdin):
    py_compile.compile(source, target, name, doraise=True, optimize=2,
                       invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)  # fmt: skip
