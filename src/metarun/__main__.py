"""Entry point of ``metarun`` and ``python -m metarun``."""

import os
import sys


def main() -> None:
    """Run the command line and exit with its status."""
    # Before torch loads its threads: beside other work on the machine, threads that wait for each other by spinning take
    # the very cores they wait for, and training slows down tenfold. A short spin costs nothing when the machine is quiet.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if sys.platform == "win32":
        print("metarun: it runs on Linux and macOS; on Windows install it in WSL (wsl --install)", file=sys.stderr)
        sys.exit(2)
    from metarun.cli.main import main as run
    from metarun.runtime.torchrun import leave

    status = run(sys.argv[1:])
    leave(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
