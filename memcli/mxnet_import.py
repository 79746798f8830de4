"""Lets ``import mxnet`` work on the Pythons and numpys that are newer than MXNet's last release.

MXNet 1.9.1 asks at import for names that numpy 1.24 and Python 3.12 have removed. Importing any
part of memcli puts a finder in front of Python's import system that knows one name, ``mxnet``:
when that is imported, by whomever, :mod:`memcli.engines.mxnet.shim` supplies what is missing, to
MXNet's own modules alone, and the package is then loaded from its own files as ever. Nothing is
imported or changed before that moment.

An installed memcli registers the finder at every start of Python, through ``memcli-mxnet.pth``
beside the package, so that scripts may import MXNet first, or never import memcli. The variable
``MEMCLI_MXNET_IMPORT=0`` leaves MXNet's import as it is.

This module is loaded at every start of Python: it imports nothing but ``sys`` and ``os``.
"""

import os
import sys


class _Finder:
    """Finds ``mxnet``, and no other module."""

    @staticmethod
    def find_spec(name, path=None, target=None):  # type: ignore[no-untyped-def]
        """The module's own spec, with a loader that first supplies what MXNet asks for."""
        if name != "mxnet":
            return None
        from importlib.machinery import PathFinder, SourceFileLoader

        class Loader(SourceFileLoader):
            def exec_module(self, module):  # type: ignore[no-untyped-def]
                import warnings

                from memcli.engines.mxnet.shim import supply_removed_names

                supply_removed_names()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of MXNet's own sources
                    super().exec_module(module)

        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def register() -> None:
    """Put the finder in front of Python's own, once."""
    if os.environ.get("MEMCLI_MXNET_IMPORT") == "0":
        return
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)  # type: ignore[arg-type]


register()
