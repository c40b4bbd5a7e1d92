#!/usr/bin/python3 -IS
# mypy: disable-error-code="no-untyped-def,no-untyped-call,arg-type"
# (annotations would be evaluated in the guest before anything is importable)
"""PID 1 of the guest: /init in the image. Makes modules importable and hands over to the agent's main().

All byte code is in one file, because looking for 110 files costs a third of the agent's start under TCG.
"""

import gc
import marshal
import sys

HOME = "/usr/lib/hako"


class Archive:
    """Finder and loader of the modules in HOME/modules: name -> (is package, file name, byte code or nothing)."""

    def __init__(self, path):
        with open(path, "rb", 0) as file:
            self.modules = marshal.loads(file.read())

    def find_spec(self, name, path=None, target=None):
        if name not in self.modules:
            return None
        package, origin, _code = self.modules[name]
        spec = type(sys.__spec__)(name, self, origin=origin, is_package=package)
        spec.has_location = True
        if package:
            spec.submodule_search_locations = [origin.rpartition("/")[0]]
        return spec

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        code = self.modules[module.__name__][2]
        if code:
            exec(marshal.loads(code), module.__dict__)


# Nothing of what is imported becomes garbage.
gc.disable()
sys.path[:0] = [HOME, HOME + "/site"]
# After the built-in and the frozen modules, before the search in sys.path.
sys.meta_path.insert(2, Archive(HOME + "/modules"))
main = __import__("agent.__main__", fromlist=["main"]).main
gc.enable()
main()
