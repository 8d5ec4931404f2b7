"""``metarun check``: is there anything wrong with a configuration, its data, or the promises of its method? Trains and writes nothing."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from metarun.cli.parser import Parser, overrides
from metarun.errors import RunError

WORDS = "overrides"


def parser() -> Parser:
    """Its options."""
    parser = Parser("check", "[KEY=VALUE ...]", "Validate a configuration and its data, and adapt to one task of each split.")
    parser.flag("--contract", help="also what every method promises, on a few tasks: the same numbers however they are mapped, and more")
    parser.flag("--gradient", help="also the meta-gradient against finite differences, in float64 on a few tasks")
    return parser


def run(options: Namespace) -> dict[str, Any]:
    """Build everything, try it, and say what there is.

    Raises:
        RunError: a promise is not kept.
    """
    from metarun.config import compose

    values = compose.resolve(compose.compose(overrides(options.words, "check")))
    from metarun import experiment  # imports torch, for which a typo need not wait
    from metarun.tracking.console import start_logging

    start_logging()
    report = experiment.check(values)
    for key, value in report.items():
        print(f"{key:12} {value}")
    if options.contract or options.gradient:
        report |= _promises(values, options)
    print("all is well")
    return report


def _promises(values: dict[str, Any], options: Namespace) -> dict[str, str]:
    """What the checks asked for have found, by name; all of them, before the first that fails is an error."""
    from metarun.contract.checks import CONTRACT, BrokenError, gradient, plain

    found, broken = {}, []
    for name, check in ((CONTRACT if options.contract else {}) | ({"gradient": gradient} if options.gradient else {})).items():
        try:
            found[name] = check(plain(values))
        except BrokenError as error:
            found[name] = f"BROKEN: {error}"
            broken.append(f"{name}: {error}")
        print(f"{name:12} {found[name]}")
    if broken:
        more = f" (and {len(broken) - 1} more, above)" if broken[1:] else ""
        raise RunError(f"algo={values['algo']['name']}: {broken[0]}{more}")
    return found
