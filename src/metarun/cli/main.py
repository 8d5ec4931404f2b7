"""The commands, and errors for people: one line that says what is wrong and how to mend it.
Exit status: 0 done, 1 the run failed, 2 the input is wrong, 130 interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from metarun.errors import UserError, nearest
from metarun.runtime import signals, torchrun
from metarun.runtime.environment import several
from metarun.storage.foreign import printable

Result = dict[str, Any] | None

# Options of Hydra that only look: what they may be followed by, None for no value, () for any.
HYDRA: dict[str, tuple[str, ...] | None] = {
    **dict.fromkeys(("--cfg", "-c"), ("job", "hydra", "all")),
    **dict.fromkeys(("--info", "-i"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
    **dict.fromkeys(("--package", "-p"), ()),
    **dict.fromkeys(("--resolve", "--hydra-help", "--shell-completion", "-sc")),
}
SWEEP = ("-m", "--multirun")


def main(words: list[str]) -> int:
    """Run the command line ``words`` (without the program's name); returns the exit status."""
    if torchrun.follows():
        return torchrun.follow()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing, and errors are explained here
    want_json = "--json" in words
    words = [word for word in words if word != "--json"]
    before = signals.install(_stop)
    try:
        result = _dispatch(words)
        if want_json and result is not None:
            print(json.dumps(result))
        sys.stdout.flush()
        torchrun.dismiss()
        return 1 if result and result.get("failed") else 0  # runs of a sweep, already told
    except KeyboardInterrupt as stop:
        return _complain(str(stop) or "interrupted", 130)
    except BrokenPipeError:  # who reads our output, for example `head`, has seen enough: no word, and nothing left to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        from metarun.config import compose

        return _complain(*compose.line_and_status(error, words))
    finally:
        signals.restore(before)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """Any signal, while no training is there to save a checkpoint, is like Ctrl-C."""
    raise KeyboardInterrupt


def _complain(line: str, status: int) -> int:
    if os.environ.get("METARUN_DEBUG") == "1":
        traceback.print_exc()
    print(f"metarun: {printable(line)}", file=sys.stderr)
    return status


def _dispatch(words: list[str]) -> Result:
    from metarun.config import options as catalogue

    own_help = words[:1] in (["compare"], ["predict"])  # commands with many options of their own
    if ("--help" in words or "-h" in words) and not own_help:
        print(catalogue.help_page(), end="")
        return None
    if "--version" in words:
        from metarun import __version__

        print(f"metarun {__version__}")
        return None
    commands: dict[str, Callable[[list[str]], Result]] = {
        "eval": _eval,
        "resume": _resume,
        "compare": _compare,
        "predict": _predict,
        "check": _check,
        "show": _show,
        "list": _list,
    }
    if words and words[0] in commands:
        return commands[words[0]](words[1:])
    overrides, options = _options(words, HYDRA | dict.fromkeys(SWEEP))
    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            known = ", ".join(commands)
            raise UserError(f"there is no command '{word}'{nearest(word, commands)} (commands: {known}; or KEY=VALUE … to train)")
    if options.keys() & HYDRA.keys():
        _ask_hydra(options, overrides)
        return None
    if not options and (spaces := [word for word in overrides if re.match(r"\+?sweep=(?!null$)", word)]):
        raise UserError(f"{spaces[0]} is for a sweep: add -m")
    return _sweep(overrides) if options else _train(overrides)


def _options(words: list[str], known: Mapping[str, tuple[str, ...] | None]) -> tuple[list[str], dict[str, str]]:
    """Split words into positional ones and options with their values (``--option VALUE`` or ``--option=VALUE``).

    Raises:
        UserError: an unknown option, or a value that is missing or not among the allowed ones.
    """
    rest: list[str] = []
    options: dict[str, str] = {}
    left = iter(words)
    for word in left:
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            rest.append(word)
        elif name not in known or (equals and known[name] is None):
            close = nearest(name, [*known, "--json", "--help", "--version"]) if word.startswith("--") else ""
            raise UserError(f"there is no option '{word}'{close} (`metarun --help` shows all)")
        elif (allowed := known[name]) is None:
            options[name] = ""
        else:
            options[name] = value if equals else next(left, "")
            if not options[name] or (allowed and options[name] not in allowed):
                choice = f"one of {', '.join(allowed)}" if allowed else "a value"
                raise UserError(f"{name} takes {choice}{nearest(options[name], allowed)}")
    return rest, options


def _ask_hydra(options: dict[str, str], overrides: list[str]) -> None:
    """Hydra's own answers: the composed configuration, completion, its plugins; nothing runs."""
    import hydra

    from metarun.config import compose
    from metarun.config import options as catalogue

    if options.keys() & {"-sc", "--shell-completion"}:
        what = overrides[0].partition("=")[0] if len(overrides) == 1 else ""
        # A query is the shell's own question: it says what has been typed in a variable.
        if what not in ("install", "uninstall", "query") or (what == "query" and "COMP_LINE" not in os.environ):
            raise UserError('-sc takes install=SHELL or uninstall=SHELL with bash, zsh or fish, as in: eval "$(metarun -sc install=bash)"')
    else:
        overrides = compose.normalise(overrides)
    kept = sys.argv
    sys.argv = ["metarun", *(word for item in options.items() for word in item if word), *overrides]
    try:
        hydra.main(version_base="1.3", config_path=str(catalogue.conf_dir()), config_name="config")(lambda cfg: None)()
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from None
    except SystemExit:
        pass  # an answer has been given
    finally:
        sys.argv = kept


def _train(words: list[str]) -> dict[str, Any]:
    """Train, validate, test."""
    from metarun.config import compose
    from metarun.storage.run_folder import alternatives, new_folder

    cfg = compose.compose(words)
    values, wanted = compose.resolve(cfg), compose.folder(cfg, "run")

    from metarun.config import schema  # imports torch, for which a typo need not wait

    schema.validate(values)
    given = any(word.startswith("hydra.run.dir=") for word in words)
    from metarun import session
    from metarun.cli import summary_table

    with new_folder([wanted] if given else alternatives(wanted)) as folder:
        summary = session.run(values, folder)
    summary_table.show(summary, folder)
    return summary


def _sweep(words: list[str]) -> dict[str, Any]:
    """All combinations, or a search, in other processes if a launcher is chosen."""
    if several():
        raise UserError("a sweep (-m) does not go with torchrun, which shares one run: leave one of them out")
    from metarun.sweeps.launch import sweep

    return sweep(words)


def _named(words: list[str], command: str) -> Path:
    """The run's folder that the first word names."""
    if not words or "=" in words[0]:
        raise UserError(f"name the run's folder: metarun {command} RUN, for example outputs/2026-01-31/12-00-00_maml-omniglot-5w1s")
    return Path(words[0])


def _resume(words: list[str]) -> dict[str, Any]:
    """Go on with an interrupted run, or a sweep; ends with the numbers that it would have had uninterrupted."""
    if words and Path(words[0], "sweep.json").is_file():
        from metarun.sweeps.launch import resume_folder

        return resume_folder(Path(words[0]), words[1:])
    words, _ = _options(words, {})
    folder = _named(words, "resume")
    from metarun import session
    from metarun.cli import summary_table

    summary = session.resume(folder, words[1:])
    summary_table.show(summary, folder)
    return summary


def _eval(words: list[str]) -> dict[str, Any]:
    """Test a run's checkpoint again, under changed values or on development episodes; the run's own files stay as they are."""
    words, options = _options(words, {"--checkpoint": ("best", "last"), "--split": ("test", "val")})
    folder = _named(words, "eval")
    from metarun import session
    from metarun.cli import summary_table

    split: Any = options.get("--split", "test")
    summary, target = session.evaluate(folder, words[1:], options.get("--checkpoint", "best"), split)
    summary_table.show(summary, target, (split,))
    return summary


def _compare(words: list[str]) -> dict[str, Any]:
    """Tables, paired comparisons, plots and a report from run folders."""
    from metarun.comparison.command import command

    return command(words)


def _predict(words: list[str]) -> dict[str, Any]:
    """Adapt a trained run to folders of pictures and classify others."""
    from metarun.predict.command import command

    return command(words)


def _overrides(words: list[str], command: str) -> dict[str, Any]:
    """The configuration that a command's KEY=VALUE words describe."""
    from metarun.config import compose

    for word in words:
        if "=" not in word and not word.startswith("~"):
            raise UserError(f"{command} takes KEY=VALUE …, not '{word}'")
    return compose.resolve(compose.compose(words))


def _check(words: list[str]) -> dict[str, Any]:
    """Validate configuration and data; train nothing."""
    values = _overrides(_options(words, {})[0], "check")
    from metarun import experiment
    from metarun.tracking.console import start_logging

    start_logging()
    report = experiment.check(values)
    for key, value in report.items():
        print(f"{key:12} {value}")
    print("all is well")
    return report


def _show(words: list[str]) -> dict[str, Any]:
    """Draw an episode, the classes of a split, or what augmentation does."""
    drawings = {"episode": "", "classes": "classes-", "augmentation": "augmentation-"}  # and how their files' names begin
    words, options = _options(words, {"--what": tuple(drawings), "--out": (), "--split": ("train", "val", "test"), "--index": ()})
    what, index = options.get("--what", "episode"), options.get("--index", "0")
    if not index.isdecimal() or int(index) >= 2**63:
        raise UserError(f"--index {index} is not possible: it is the number of an episode or of a sheet of classes, 0, 1, 2, …")
    values = _overrides(words, "show")
    from metarun import run
    from metarun.drawing import figures
    from metarun.tracking.console import start_logging

    start_logging()
    built = run.Run(values)
    split = options.get("--split") or next(name for name in ("train", "val", "test") if name in built.data.splits)
    path = Path(options.get("--out") or f"outputs/show/{values['name']}-{split}-{drawings[what]}{index}.png")
    figures.save(getattr(figures, what)(built, split, int(index)), path)
    print(path)
    return {"picture": str(path)}


def _list(words: list[str]) -> dict[str, Any]:
    """What there is to choose from: every group's options with their first comment line."""
    from metarun.config import options as catalogue

    words, _ = _options(words, {})
    found = catalogue.descriptions()
    for word in words:
        if word not in found:
            raise UserError(f"there is no group '{word}'{nearest(word, found)} (groups: {', '.join(found)})")
    chosen = {group: options for group, options in found.items() if not words or group in words}
    for group, options in chosen.items():
        print(f"{group}=")
        for option, text in options.items():
            print(f"  {option:28} {text}")
    return chosen
