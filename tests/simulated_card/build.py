"""Builds the simulated card: libraries that stand in for CUDA's, so that PyTorch counts memory.

    python tests/simulated_card/build.py --torch VENV/lib/python3.11/site-packages/torch/lib OUT
        [--cuda FOLDER]

``--torch``: the folder of ``libtorch_cuda.so`` of a CUDA 13 build; ``--cuda``: a folder with
``cuda_runtime_api.h`` (the toolkit's, or that of the wheel ``nvidia-cuda-runtime``). Every function
that PyTorch's libraries import and that no file of ``card/`` writes becomes a stub, which says that
it was reached. Run PyTorch with ``LD_LIBRARY_PATH=OUT``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CARD = Path(__file__).resolve().parent / "card"
_RUNTIME = "libcudart.so.13"


@dataclass(frozen=True)
class Library:
    """``pattern``: of names that it has; ``node``: of its symbols' versions."""

    name: str
    pattern: str
    node: str | None
    files: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        return self.name.split(".so")[0]


LIBRARIES = [
    Library(_RUNTIME, r"(__)?cuda[A-Z]", _RUNTIME, ("devices.c", "memory.c", "launches.c")),
    Library("libcuda.so.1", r"cu[A-Z](?!File|dnn)", None, ("driver.c",)),
    Library("libcublas.so.13", r"cublas(?!Lt)", "libcublas.so.13", ("blas.c",)),
    Library("libcublasLt.so.13", r"cublasLt", "libcublasLt.so.13", ("blaslt.c",)),
    Library("libcudnn.so.9", r"cudnn", "libcudnn.so.9", ("dnn.c",)),
    Library("libcusparse.so.12", r"cusparse(?!Lt)", "libcusparse.so.12"),
    Library("libcusparseLt.so.0", r"cusparseLt", None),
    Library("libcufft.so.12", r"cufft", "libcufft.so.12"),
    Library("libcurand.so.10", r"curand", None),
    Library("libcusolver.so.12", r"cusolver", "libcusolver.so.12"),
    Library("libcufile.so.0", r"cuFile", None),
    Library("libnccl.so.2", r"nccl", None, ("nccl.c",)),
    Library("libnvrtc.so.13", r"nvrtc", "libnvrtc.so.13"),
    Library("libcupti.so.13", r"cupti", "libcupti.so.13"),
    Library("libnvshmem_host.so.3", r"nvshmem", "NVSHMEM"),
]
_TORCH = "c10_cuda torch_cuda torch_cuda_linalg torch_python torch_cpu torch_nvshmem caffe2_nvrtc"


def imports(torch: Path) -> set[str]:
    """Names that PyTorch's libraries look for in others, with versions."""
    found: set[str] = set()
    for name in [*_TORCH.split(), "torch_global_deps"]:
        path = torch / f"lib{name}.so"
        if path.exists():
            lines = _output("nm", "-D", "--undefined-only", str(path)).splitlines()
            found |= {line.split()[-1] for line in lines}
    return found


def build(torch: Path, cuda: Path, out: Path) -> None:
    """Writes every library into a folder.

    Raises:
        RuntimeError: the compiler refused.
    """
    out.mkdir(parents=True, exist_ok=True)
    wanted = imports(torch)
    first, *others = LIBRARIES
    _link(first, wanted, cuda, out)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda library: _link(library, wanted, cuda, out), others))


def _link(library: Library, wanted: set[str], cuda: Path, out: Path) -> None:
    text = "\n".join((CARD / name).read_text() for name in library.files)
    pattern = r"^(?:[\w\*]+ )+\**(\w+)\(|^MAKES\((\w+)\)"
    ours = {a or b for a, b in re.findall(pattern, text, re.M)}
    node = library.node
    names = sorted(
        symbol.split("@")[0]
        for symbol in wanted
        if re.match(library.pattern, symbol)
        and (node is None or "@" not in symbol or symbol.endswith("@" + node))
    )
    stubs = [
        f"long {name}() {{ static int told; if (!told) {{ told = 1; "
        f'simulated_stub("{library.stem}", "{name}"); }} return 0; }}'
        for name in names
        if name not in ours
    ]
    source = out / f"{library.stem}_stubs.c"
    source.write_text('#include "card.h"\n' + "\n".join(stubs) + "\n")
    versions = out / f"{library.stem}.map"
    versions.write_text(f"{node} {{ global: *; }};\n" if node else "{ global: *; };\n")
    files = [str(CARD / name) for name in library.files]
    runtime = [] if library.name == _RUNTIME else [f"-L{out}", f"-l:{_RUNTIME}"]
    _output(
        *["cc", "-O1", "-g", "-w", f"-I{CARD}", f"-I{cuda}", "-shared", "-fPIC"],
        *["-o", str(out / library.name), *files, str(source)],
        *[f"-Wl,-soname,{library.name}", f"-Wl,--version-script={versions}"],
        *[*runtime, "-ldl", "-lpthread"],
    )


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:1])}: {done.stderr.strip()[:2000]}")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(sysconfig.get_paths()["purelib"]) / "torch" / "lib"
    parser.add_argument("--torch", type=Path, default=here)
    parser.add_argument("--cuda", type=Path, default=Path("/usr/local/cuda/include"))
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    for path in (options.torch / "libtorch_cuda.so", options.cuda / "cuda_runtime_api.h"):
        if not path.exists():
            print(f"{path}: is not there", file=sys.stderr)
            return 2
    build(options.torch, options.cuda, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
