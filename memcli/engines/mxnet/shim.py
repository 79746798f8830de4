"""Imports MXNet 1.9.1 on Pythons and numpys that are newer than it.

MXNet's last release dates from before numpy 1.24, numpy 2 and Python 3.12, and trips over names
that these removed. Everything that is needed to get it running is here, and nothing else in
memcli may import mxnet. memcli itself uses it in processes that are there for the engine alone:
MXNet is slow to load, and some graphs crash it. In a user's own process
:mod:`memcli.mxnet_import` calls :func:`supply_removed_names` when ``mxnet`` is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import re
import signal
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memcli.errors import EngineFailed

# In the order in which the dynamic loader can take them: each needs only the ones before it.
# (folder below site-packages/nvidia, file name). cuDNN's parts are opened by libcudnn.so.8 itself,
# by bare name, so they have to be there already; nvrtc has a second library of the same manner.
CUDA_WHEEL_LIBS = (
    ("cuda_runtime", "libcudart.so.11.0"),
    ("cuda_nvrtc", "libnvrtc-builtins.so.11*"),
    ("cuda_nvrtc", "libnvrtc.so.11.2"),
    ("nvtx", "libnvToolsExt.so.1"),
    ("cublas", "libcublasLt.so.11"),
    ("cublas", "libcublas.so.11"),
    ("cufft", "libcufft.so.10"),
    ("curand", "libcurand.so.10"),
    ("cusolver", "libcusolver.so.11"),
    ("cudnn", "libcudnn_ops_infer.so.8"),
    ("cudnn", "libcudnn_cnn_infer.so.8"),
    ("cudnn", "libcudnn_adv_infer.so.8"),
    ("cudnn", "libcudnn_ops_train.so.8"),
    ("cudnn", "libcudnn_cnn_train.so.8"),
    ("cudnn", "libcudnn_adv_train.so.8"),
    ("cudnn", "libcudnn.so.8"),
    ("nccl", "libnccl.so.2"),
)

# A library of the loader's error message -> the wheel that holds it.
_WHEEL_OF = {
    "libcudart": "nvidia-cuda-runtime-cu11",
    "libnvrtc": "nvidia-cuda-nvrtc-cu11",
    "libnvToolsExt": "nvidia-nvtx-cu11",
    "libcublas": "nvidia-cublas-cu11",
    "libcufft": "nvidia-cufft-cu11",
    "libcurand": "nvidia-curand-cu11",
    "libcusolver": "nvidia-cusolver-cu11",
    "libcudnn": "nvidia-cudnn-cu11",
    "libnccl": "nvidia-nccl-cu11",
}

INSTALL_HINT = "Install it with: pip install 'memcli[mxnet]'"


def import_mxnet() -> Any:
    """The ``mxnet`` module, imported without a word on standard error.

    Raises EngineFailed where MXNet is not installed, where its library does not load, or where
    this Python or numpy is too new even for what is done here.
    """
    loaded = sys.modules.get("mxnet")
    if loaded is not None and hasattr(loaded, "nd"):
        return loaded
    try:
        installed = importlib.util.find_spec("mxnet") is not None
    except (ImportError, ValueError):
        installed = False
    if not installed:
        raise EngineFailed("MXNet is not installed for this Python.", _install_hint())
    supply_removed_names()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module("mxnet")
    except OSError as error:
        raise _library_error(error) from error
    except RuntimeError as error:
        # libinfo.find_lib_path: the package is there and its library is not.
        raise EngineFailed(
            f"MXNet is installed without its library: {_first_line(error)}", _install_hint()
        ) from error
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        for name in [name for name in sys.modules if name.split(".")[0] == "mxnet"]:
            del sys.modules[name]
        raise EngineFailed(
            f"MXNet does not import on Python {sys.version.split()[0]} with numpy "
            f"{_numpy_version()}: {type(error).__name__}: {_first_line(error)}",
            "Python 3.11 with numpy 1.26 is known to work; `memcli doctor` shows what is here.",
        ) from error
    # MXNet's own handler makes a crash look like an exit with status 255.
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    return module


def supply_removed_names() -> None:
    """Supplies what MXNet asks of Python, numpy and the loader when it is imported.

    To be called before the ``mxnet`` package is loaded; a second call changes nothing.
    """
    _supply_distutils()
    _supply_numpy_names()
    preload_cuda_wheels()


def preload_cuda_wheels() -> list[str]:
    """Loads the CUDA libraries of NVIDIA's wheels for everyone in this process.

    The CUDA build of MXNet looks for them by bare name and knows nothing of site-packages. Does
    nothing for a CPU build (no ``nvidia`` folder, or libmxnet does not ask for CUDA). Returns the
    paths that were loaded; one that does not load is left for libmxnet's own error message.
    """
    if not is_cuda_build():
        return []
    done: list[str] = []
    for path in find_cuda_libs().values():
        if path is None:
            continue
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        done.append(str(path))
    return done


def find_cuda_libs() -> dict[str, Path | None]:
    """{file name: path in one of NVIDIA's wheels, or None} for what a CUDA build loads."""
    roots = _nvidia_folders()
    found: dict[str, Path | None] = {}
    for folder, name in CUDA_WHEEL_LIBS:
        hits = [p for root in roots for p in sorted((root / folder / "lib").glob(name))]
        found[name] = hits[0] if hits else None
    return found


def library_path() -> Path | None:
    """Where libmxnet.so of the installed package is, without importing the package."""
    try:
        spec = importlib.util.find_spec("mxnet")
    except (ImportError, ValueError):
        return None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "libmxnet.so"
        if path.is_file():
            return path
    return None


def is_cuda_build() -> bool:
    """Whether the installed libmxnet asks the loader for CUDA (told without loading it)."""
    path = library_path()
    if path is None:
        return False
    needed = _needed_libraries(path)
    return any(name.startswith(("libcuda", "libcudart", "libcublas")) for name in needed)


# --------------------------------------------------------------------------- numpy


def _not_there_any_more(name: str) -> Callable[..., Any]:
    """Stands in for a removed numpy function that MXNet names at import and memcli never calls."""

    def removed(*_args: object, **_kwargs: object) -> Any:
        raise RuntimeError(f"numpy.{name} does not exist in this numpy")

    removed.__name__ = name
    return removed


def _old_numpy_names() -> dict[str, Any]:
    """Names removed from numpy (1.24 to 2.5) that MXNet touches, with what they were."""
    import numpy as np

    def row_stack(arrays: Any) -> Any:
        return np.vstack(arrays)

    def in1d(*args: Any, **kwargs: Any) -> Any:
        return np.isin(*args, **kwargs).ravel()

    def msort(array: Any) -> Any:
        return np.sort(array, axis=0)

    return {
        "bool": bool,
        "int": int,
        "float": float,
        "object": object,
        "str": str,
        "PZERO": 0.0,
        "NZERO": -0.0,
        "PINF": np.inf,
        "NINF": -np.inf,
        "Inf": np.inf,
        "NAN": np.nan,
        "NaN": np.nan,
        "float_": np.float64,
        "alltrue": np.all,
        "sometrue": np.any,
        "round_": np.round,
        "product": np.prod,
        "cumproduct": np.cumprod,
        "row_stack": row_stack,
        "in1d": in1d,
        "msort": msort,
        "trapz": getattr(np, "trapezoid", _not_there_any_more("trapz")),
        "compat": types.SimpleNamespace(basestring=str, unicode=str, long=int),
    }


def _supply_numpy_names() -> None:
    """Lets MXNet's own modules, and no others, see the names that numpy has dropped.

    numpy is not given the names themselves: other libraries in the process tell numpy's version
    by what it lacks.
    """
    import numpy as np

    if getattr(np.__dict__.get("__getattr__"), "memcli_shim", False):
        return
    names = _old_numpy_names()
    previous = np.__dict__.get("__getattr__")

    def getattribute(name: str) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__") or ""
        from_mxnet = caller == "mxnet" or caller.startswith("mxnet.")
        if from_mxnet and name in names:
            return names[name]
        try:
            if previous is not None:
                return previous(name)
            raise AttributeError(f"module 'numpy' has no attribute {name!r}")
        except AttributeError:
            # mxnet.numpy.fallback lists some seventy functions, by plain attribute access at
            # import; numpy goes on removing them (npv and pmt in 2.0, trapz and in1d in 2.4).
            if caller == "mxnet.numpy.fallback" and not name.startswith("__"):
                return _not_there_any_more(name)
            raise

    getattribute.memcli_shim = True  # type: ignore[attr-defined]
    setattr(np, "__getattr__", getattribute)  # noqa: B010


# --------------------------------------------------------------------------- distutils


def _supply_distutils() -> None:
    """Gives MXNet ``distutils.version``, which Python 3.12 has no more.

    setuptools brings a distutils of its own along where it is installed; this is for where not.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import distutils.version  # noqa: F401

            return
        except ImportError:
            pass

    class Version:
        """Compares dotted version numbers; all that MXNet asks of distutils."""

        def __init__(self, text: str) -> None:
            self.vstring = text
            self.version = [int(part) for part in re.findall(r"\d+", text)]

        def __str__(self) -> str:
            return self.vstring

        def _other(self, other: Any) -> list[int]:
            return other.version if isinstance(other, Version) else Version(str(other)).version

        def __eq__(self, other: object) -> bool:
            return self.version == self._other(other)

        def __lt__(self, other: Any) -> bool:
            return self.version < self._other(other)

        def __le__(self, other: Any) -> bool:
            return self.version <= self._other(other)

        def __gt__(self, other: Any) -> bool:
            return self.version > self._other(other)

        def __ge__(self, other: Any) -> bool:
            return self.version >= self._other(other)

        __hash__ = None  # type: ignore[assignment]

    package = types.ModuleType("distutils")
    package.__path__ = []
    version = types.ModuleType("distutils.version")
    for name in ("Version", "LooseVersion", "StrictVersion"):
        setattr(version, name, Version)
    package.version = version  # type: ignore[attr-defined]
    sys.modules["distutils"] = package
    sys.modules["distutils.version"] = version


# --------------------------------------------------------------------------- errors and libraries


def _install_hint() -> str:
    if sys.version_info >= (3, 13):
        # MXNet asks for numpy < 2, and numpy 1 has no wheels for Python 3.13.
        return (
            "Install it with: pip install --no-deps mxnet==1.9.1 && "
            "pip install requests graphviz 'numpy>=2.1'"
        )
    return INSTALL_HINT


def _library_error(error: OSError) -> EngineFailed:
    """What to say where the dynamic loader refused libmxnet or one that it needs."""
    text = _first_line(error)
    match = re.search(r"(lib[\w+-]+)\.so[\w.]*", text)
    library = match.group(0) if match else ""
    if library.startswith("libcuda.so"):
        return EngineFailed(
            "The CUDA build of MXNet is installed, and there is no NVIDIA driver here "
            f"({library} not found).",
            "Install NVIDIA's driver, or replace mxnet-cu112 by the CPU build: "
            "pip uninstall mxnet-cu112 && pip install 'memcli[mxnet]'",
        )
    stem = match.group(1) if match else ""
    for prefix, wheel in _WHEEL_OF.items():
        if stem.startswith(prefix):
            return EngineFailed(
                f"The CUDA build of MXNet lacks {library}: {text}",
                f"Install the CUDA 11 libraries: pip install 'memcli[cu112]' (it holds {wheel})",
            )
    if stem.startswith(("libgomp", "libgfortran", "libopenblas", "libstdc++", "libquadmath")):
        return EngineFailed(
            f"MXNet's library lacks {library}: {text}",
            f"Install the system package that holds {library} (Debian, Ubuntu: libgomp1).",
        )
    return EngineFailed(f"MXNet's library does not load: {text}", _install_hint())


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _numpy_version() -> str:
    try:
        import numpy as np
    except ImportError:
        return "(none)"
    return np.__version__


def _nvidia_folders() -> list[Path]:
    """The ``nvidia`` folders of all wheels (a namespace package: one or more folders)."""
    try:
        spec = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        return []
    if spec is None or spec.submodule_search_locations is None:
        return []
    return [Path(folder) for folder in spec.submodule_search_locations]


def _needed_libraries(path: Path) -> list[str]:
    """DT_NEEDED entries of a 64-bit little-endian ELF file; [] for anything else.

    Reads the headers and the dynamic section alone: libmxnet of a CUDA build is 1 GB.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
            if head[:6] != b"\x7fELF\x02\x01":
                return []
            offset = int.from_bytes(head[0x20:0x28], "little")
            size = int.from_bytes(head[0x36:0x38], "little")
            count = int.from_bytes(head[0x38:0x3A], "little")
            file.seek(offset)
            table = file.read(size * count)
            segments = []
            dynamic = None
            for i in range(count):
                row = table[i * size : (i + 1) * size]
                kind = int.from_bytes(row[0:4], "little")
                at = int.from_bytes(row[8:16], "little")
                address = int.from_bytes(row[16:24], "little")
                length = int.from_bytes(row[32:40], "little")
                if kind == 1:  # PT_LOAD
                    segments.append((address, at, length))
                elif kind == 2:  # PT_DYNAMIC
                    dynamic = (at, length)
            if dynamic is None:
                return []
            file.seek(dynamic[0])
            entries = file.read(dynamic[1])
            names_at, names_size, wanted = 0, 0, []
            for i in range(0, len(entries) - 15, 16):
                tag = int.from_bytes(entries[i : i + 8], "little")
                value = int.from_bytes(entries[i + 8 : i + 16], "little")
                if tag == 1:  # DT_NEEDED
                    wanted.append(value)
                elif tag == 5:  # DT_STRTAB
                    names_at = value
                elif tag == 10:  # DT_STRSZ
                    names_size = value
            for address, at, length in segments:
                if address <= names_at < address + length:
                    names_at = names_at - address + at
                    break
            file.seek(names_at)
            names = file.read(names_size)
            return [names[v : names.index(b"\0", v)].decode() for v in wanted]
    except (OSError, ValueError):
        return []
