"""Packaging beside ``pyproject.toml``: the line that Python runs at every start.

``memcli-mxnet.pth`` goes into site-packages beside the package, and with it when it is uninstalled.
What it is for is told in ``memcli/mxnet_import.py``.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

NAME = "memcli-mxnet.pth"
LINE = "import memcli.mxnet_import\n"


class BuildWithStartupLine(build_py):
    """Adds the ``.pth`` file to what is installed, editable or not."""

    def run(self) -> None:
        super().run()
        folder = self.build_lib
        if self.editable_mode:  # the package's files stay where they are; this one does not
            folder = self.get_finalized_command("install").install_lib
        self.mkpath(folder)
        Path(folder, NAME).write_text(LINE)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        outputs = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else [*outputs, str(Path(self.build_lib, NAME))]


setup(cmdclass={"build_py": BuildWithStartupLine})
