"""Entry point of ``metarun`` and ``python -m metarun``."""

import sys


def main() -> None:
    """Run the command line and exit with its status."""
    from metarun.cli import main as run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
