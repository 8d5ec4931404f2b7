"""The commands, and errors for people: one line that says what is wrong and how to mend it.
Exit status: 0 done, 1 the run failed, 2 the input is wrong, 130 interrupted."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metarun import compose
from metarun.errors import RunError, UserError, nearest

log = logging.getLogger(__name__)

# Hydra's own options; the ones before the bar take a value.
HYDRA_VALUES = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
                "--experimental-rerun", "--info", "-i")  # fmt: skip
HYDRA_FLAGS = ("--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m", "--shell-completion", "-sc")
OURS = ("--json", "--out", "--split", "--index", "--checkpoint")


def main(words: list[str]) -> int:
    """Run the command line ``words`` (without the program's name); returns the exit status."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing, and errors are explained here
    want_json = "--json" in words
    words = [word for word in words if word != "--json"]
    try:
        result = _dispatch(words)
        if want_json and result is not None:
            print(json.dumps(result))
        return 0
    except KeyboardInterrupt as stop:
        return _complain(str(stop) or "interrupted", 130)
    except UserError as error:
        return _complain(str(error), 2)
    except RunError as error:
        return _complain(str(error), 1)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        explained = compose.explain_hydra(error, words)
        if isinstance(explained, UserError):
            return _complain(str(explained), 2)
        if isinstance(error, PermissionError | FileExistsError | NotADirectoryError | IsADirectoryError):
            return _complain(f"cannot write or read {error.filename}: {error.strerror}; choose another folder with hydra.run.dir=FOLDER", 2)
        text = " ".join(str(error).split())
        return _complain(f"failed: {type(error).__name__}: {text} (METARUN_DEBUG=1 shows where)", 1)


def _complain(line: str, status: int) -> int:
    if os.environ.get("METARUN_DEBUG") == "1":
        traceback.print_exc()
    print(f"metarun: {line}", file=sys.stderr)
    return status


def _dispatch(words: list[str]) -> dict[str, Any] | None:
    commands: dict[str, Callable[[list[str]], dict[str, Any] | None]] = {
        "eval": _eval, "resume": _resume, "check": _check, "show": _show, "list": _list,
    }  # fmt: skip
    if words and words[0] in commands:
        return commands[words[0]](words[1:])
    for word in words:
        if re.fullmatch(r"\w+", word) and not _follows_option(words, word):
            known = ", ".join(commands)
            raise UserError(f"there is no command '{word}'{nearest(word, commands)} (commands: {known}; or KEY=VALUE … to train)")
    return _run(words)


def _follows_option(words: list[str], word: str) -> bool:
    before = words[words.index(word) - 1] if words.index(word) else ""
    return before in HYDRA_VALUES


def _run(words: list[str]) -> dict[str, Any] | None:
    """Train, validate, test; or a sweep with -m."""
    import hydra

    for word in words:
        if word.startswith("-") and word not in (*HYDRA_VALUES, *HYDRA_FLAGS):
            raise UserError(f"there is no option '{word}'{nearest(word, [*HYDRA_VALUES, *HYDRA_FLAGS, '--json'])} (see metarun --help)")
    options = [word for word in words if word.startswith("-") or _follows_option(words, word)]
    overrides = compose.normalise([word for word in words if word not in options])
    sys.argv = ["metarun", *options, *overrides]  # Hydra 1.3 wants its flags first
    results: list[dict[str, Any]] = []

    @hydra.main(version_base="1.3", config_path=str(compose.conf_dir()), config_name="config")
    def job(cfg: Any) -> float | None:
        from hydra.core.hydra_config import HydraConfig

        summary = _train(compose.resolve(cfg), Path(HydraConfig.get().runtime.output_dir))
        results.append(summary)
        return next(iter(summary["val"].values()))["mean"]

    job()
    if not results:
        return None
    return results[0] if len(results) == 1 else {"runs": results}


def _train(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    from metarun import run

    try:
        summary = run.train(values, folder)
    except UserError:
        _remove_empty_run(folder)
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_how_to_resume(folder)) from None
    _report(summary, folder)
    return summary


def _remove_empty_run(folder: Path) -> None:
    """Bad input leaves nothing behind: a folder in which no training has begun goes, and the folder of the day if it is empty now."""
    if (folder / "checkpoints").exists() or (folder / "metrics.jsonl").exists():
        return
    logging.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # other runs of the day
        folder.parent.rmdir()


def _how_to_resume(folder: Path) -> str:
    if (folder / "checkpoints" / "last.pt").is_file():
        return f"interrupted, checkpoint saved; go on with: metarun resume {_relative(folder)}"
    return "interrupted before the first training step; nothing to save"


def _relative(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _report(summary: dict[str, Any], folder: Path) -> None:
    """The closing table on stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    title = f"{summary['algo']} on {summary['data']}, {summary['way']}-way {summary['shot']}-shot, {summary['query']} queries per class"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("split", "metric", "mean", "± 95 % over episodes", "episodes"):
        table.add_column(name, justify="left" if name in ("split", "metric") else "right")
    for split in ("val", "test"):
        for metric, value in (summary[split] or {}).items():
            if isinstance(value, dict):
                table.add_row(split, metric, f"{value['mean']:.4f}", f"{value['ci95']:.4f}", str(value["n"]))
    out = Console(width=max(100, Console().width) if not sys.stdout.isatty() else None)
    out.print(table)
    curve = (summary["test"] or {}).get("curve", [])
    if len(curve) > 1:
        out.print("adaptation curve (inner step: test mean)  " + "  ".join(f"{point['step']}: {point['mean']:.4f}" for point in curve))
    out.print(f"norm {summary['bn_mode']} ({'transductive' if summary['bn_mode'] == 'batch' else 'inductive'})   seed {summary['seed']}   "
              f"parameters {summary['parameters']:,}   best at iteration {summary['best_step']}   {summary['wall_s']:.0f} s   "
              f"{summary['tasks_per_s']:.0f} training tasks/s", highlight=False)  # fmt: skip
    out.print(f"run folder   {_relative(folder)}", soft_wrap=True, highlight=False)
    out.print("TensorBoard  tensorboard --logdir outputs", highlight=False)


def _run_folder(words: list[str], command: str) -> tuple[Path, dict[str, Any]]:
    """The run folder named by the first word, and its stored config."""
    from omegaconf import OmegaConf

    if not words or "=" in words[0]:
        raise UserError(f"name the run's folder: metarun {command} RUN, for example outputs/2026-01-31/12-00-00_maml-omniglot-5w1s")
    folder = Path(words[0])
    if not folder.is_dir():
        siblings = [str(folder.parent / path.name) for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserError(f"there is no run folder {folder}{nearest(str(folder), siblings)}")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is not a run folder: it has no config.yaml; name a folder like outputs/DATE/TIME_NAME")
    try:
        values = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except Exception as error:
        raise UserError(f"{folder}/config.yaml cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{folder}/config.yaml holds no configuration")
    return folder, {str(key): value for key, value in values.items()}


def _log_to(folder: Path) -> None:
    """The logging that Hydra sets up for a training run, for commands that Hydra does not start."""
    from rich.logging import RichHandler

    from metarun.console import console

    shown = RichHandler(console=console, show_path=False, show_level=False, omit_repeated_times=False, log_time_format="%H:%M:%S")
    shown.setFormatter(logging.Formatter("%(message)s"))
    kept = logging.FileHandler(folder / "metarun.log", delay=True)
    kept.setFormatter(logging.Formatter("[%(asctime)s][%(levelname)s][%(name)s] %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[shown, kept], force=True)


def _resume(words: list[str]) -> dict[str, Any]:
    """Go on with an interrupted run; ends with the numbers that the uninterrupted run would have had."""
    folder, values = _run_folder(words, "resume")
    if words[1:]:
        raise UserError(f"resume takes no '{words[1]}': a run goes on with its own configuration; start a new run to change it")
    if (folder / "summary.json").is_file():
        raise UserError(f"{folder} is finished (it has a summary.json); test it again with: metarun eval {folder}")
    from metarun import run

    _log_to(folder)
    try:
        summary = run.train(values, folder, resume=True)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_how_to_resume(folder)) from None
    _report(summary, folder)
    return summary


def _eval(words: list[str]) -> dict[str, Any]:
    """Meta-test a run's checkpoint again, under changed values; the run's own files stay as they are."""
    words, chosen = _take(words, "--checkpoint", "best")
    folder, values = _run_folder(words, "eval")
    values = compose.override(values, words[1:])
    from metarun import run

    taken = [int(path.name) for path in (folder / "eval").glob("*") if path.name.isdigit()]
    target = folder / "eval" / str(max(taken, default=-1) + 1)
    summary = run.evaluate(values, folder, chosen, target)
    _report(summary, target)
    return summary


def _check(words: list[str]) -> dict[str, Any]:
    """Validate configuration and data; train nothing."""
    values = compose.resolve(compose.compose(words))
    from metarun import run

    report = run.check(values)
    for key, value in report.items():
        print(f"{key:12} {value}")
    print("all is well")
    return report


def _show(words: list[str]) -> dict[str, Any]:
    """Draw an episode."""
    words, out = _take(words, "--out", "")
    words, split = _take(words, "--split", "train")
    words, index = _take(words, "--index", "0")
    if not index.isdigit():
        raise UserError(f"--index {index} is not a number: the episode's index is 0, 1, 2, …")
    values = compose.resolve(compose.compose(words))
    from metarun import pictures, run

    path = Path(out or f"outputs/show/{values['name']}-{split}-{index}.png")
    pictures.episode(run.Run(values), split, int(index), path)
    print(path)
    return {"picture": str(path)}


def _list(words: list[str]) -> dict[str, Any]:
    """What there is to choose from: every group's options with their first comment line."""
    found = compose.descriptions()
    for word in words:
        if word not in found:
            raise UserError(f"there is no group '{word}'{nearest(word, found)} (groups: {', '.join(found)})")
    chosen = {group: options for group, options in found.items() if not words or group in words}
    for group, options in chosen.items():
        print(f"{group}=")
        for option, text in options.items():
            print(f"  {option:28} {text}")
    return chosen


def _take(words: list[str], option: str, default: str) -> tuple[list[str], str]:
    """Remove ``option VALUE`` or ``option=VALUE`` from the words."""
    for i, word in enumerate(words):
        if word.startswith(option + "="):
            return words[:i] + words[i + 1 :], word.partition("=")[2]
        if word == option:
            if i + 1 == len(words):
                raise UserError(f"{option} needs a value")
            return words[:i] + words[i + 2 :], words[i + 1]
    return words, default
