"""Fetches what the simulated card runs: PyTorch's CUDA build, without NVIDIA's libraries.

    python tests/simulated_card/environment.py FOLDER

Then ``MEMCLI_CUDA_TORCH=FOLDER pytest tests/simulated_card``. The wheel (530 MB) goes into a folder
of its own, in front of the path of the environment that runs this, of which nothing changes;
everything else that memcli needs comes from there. NVIDIA's libraries must not be in the folder:
the wheel would load them in place of the simulated ones. Their headers are fetched where the
machine has no toolkit.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Three equal signs: two would be content with the build for the CPU.
_TORCH = "torch===2.13.0"
_HEADERS = "nvidia-cuda-runtime>=13,<14"
TOOLKIT = Path("/usr/local/cuda/include")


def headers(folder: Path) -> Path | None:
    """The folder with CUDA's headers, of the toolkit or fetched; None where there is none."""
    for path in [TOOLKIT, *sorted((folder / "headers").glob("nvidia/*/include"))]:
        if (path / "cuda_runtime_api.h").exists():
            return path
    return None


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    wanted = [] if (folder / "torch").exists() else [(_TORCH, folder)]
    if headers(folder) is None:
        wanted.append((_HEADERS, folder / "headers"))
    for package, target in wanted:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        status = subprocess.call([*command, "--target", str(target), package])
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
