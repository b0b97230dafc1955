"""Puts the teaching plugin into the package, where ``sobolev new-plugin`` finds it; all else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithTeachingPlugin(build_py):
    """Copies ``plugins/example-plugin`` to ``sobolev/example_plugin`` of what is built."""

    def run(self) -> None:
        """Build as usual, then copy; an editable installation uses the folder itself."""
        super().run()
        if not self.editable_mode:
            source = Path(__file__).parent / "plugins" / "example-plugin"
            unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "*.pyc")
            copied = Path(self.build_lib) / "sobolev" / "example_plugin"
            shutil.copytree(source, copied, ignore=unwanted, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithTeachingPlugin})
