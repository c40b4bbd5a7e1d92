"""Run by the guest's own interpreter (python3 -ISB): imports what the agent needs and reports what that loaded.

Reads a marshalled (directories to put first on the path, modules, names that may be modules) from standard input;
prints the repr of {"version": (major, minor), "modules": [(name, file, is package)]}, without the modules that are
built into or frozen in the interpreter. Uses only what every interpreter has loaded already, so that the list holds
nothing of its own. Called by closure.py; knows nothing of images.
"""
import marshal
import sys

directories, required, possible = marshal.loads(sys.stdin.buffer.read())
sys.path[:0] = directories
for name in required:
    __import__(name)
for name in possible:
    parent, _, attribute = name.rpartition(".")
    if not hasattr(sys.modules[parent], attribute):
        __import__(name)
loaded = [
    (name, module.__file__, hasattr(module, "__path__"))
    for name, module in sorted(sys.modules.items())
    if name != "__main__" and getattr(module, "__file__", None) and module.__spec__ and module.__spec__.origin != "frozen"
]
print(repr({"version": sys.version_info[:2], "modules": loaded}))
