"""A disk that can be filled, for tests of what happens when there is no room."""

import resource
import signal
import subprocess
from pathlib import Path


class SmallDisk:
    """A disk of 4 MiB where the test may mount one, else a limit on the size of files.

    Attributes:
      path: of its directory.
      mounted: whether it is a disk of its own.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "small", str(path)]
        self.path = path
        try:
            self.mounted = subprocess.run(mount, capture_output=True).returncode == 0
        except FileNotFoundError:
            self.mounted = False
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(self) -> None:
        """Fills the disk to the last byte."""
        if not self.mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, self._before[1]))
            return
        with open(self.path / "filler", "ab", buffering=0) as filler:
            for size in (1 << 16, 1 << 10, 1):
                try:
                    while filler.write(bytes(size)):
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        """Makes room again."""
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)
        (self.path / "filler").unlink(missing_ok=True)

    def names(self) -> set[str]:
        """The names of its files."""
        return {file.name for file in self.path.iterdir()} - {"filler"}

    def __enter__(self) -> "SmallDisk":
        return self

    def __exit__(self, *_: object) -> None:
        self.free()
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.path)], check=True)
