"""What Hydra itself answers: the composed configuration, its plugins, its help. Nothing runs."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from metarun.cli.parser import Parser
from metarun.errors import UserError


def add_options(parser: Parser) -> None:
    """Hydra's options that only look."""
    info = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    parser.option("--cfg", "-c", choices=("job", "hydra", "all"), help="print the composed configuration and stop")
    parser.option("--info", "-i", choices=info, help="print what Hydra knows of itself and stop")
    parser.option("--package", "-p", help="with --cfg: of this package alone")
    parser.flag("--resolve", help="with --cfg: interpolations resolved")
    parser.flag("--hydra-help", help="print Hydra's own help and stop")


def wanted(options: Namespace) -> bool:
    """Whether any of these options is given."""
    return bool(_given(options))


def run(options: Namespace) -> None:
    """Print Hydra's answer.

    Raises:
        UserError: words or options that do not go together.
    """
    from metarun.config import compose

    answer([*_given(options), *compose.normalise(options.words)])


def _given(options: Namespace) -> list[str]:
    """These options, as they were given."""
    values = {"--cfg": options.cfg, "--info": options.info, "--package": options.package}
    flags = {"--resolve": options.resolve, "--hydra-help": options.hydra_help}
    return [word for name, value in values.items() if value for word in (name, value)] + [name for name, given in flags.items() if given]


def answer(words: Sequence[str]) -> None:
    """Let Hydra answer ``metarun WORDS`` on stdout.

    Raises:
        UserError: Hydra objects.
    """
    import hydra

    from metarun.config import compose  # with which the user's own options are on Hydra's search path

    kept = sys.argv
    sys.argv = ["metarun", *words]
    try:
        hydra.main(version_base="1.3", config_path=str(compose.conf_dir()), config_name="config")(lambda cfg: None)()
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from None
    except SystemExit:
        pass  # an answer has been given
    finally:
        sys.argv = kept
