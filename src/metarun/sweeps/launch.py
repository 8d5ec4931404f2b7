"""`metarun -m …`: many runs by Hydra's sweepers and launchers, in one folder that remembers them, so that a sweep can go on.
What a job does is in sweep_job.py; here is what the user's own process does: check, launch, watch, and the table at the end."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from metarun.abilities import Attacks
from metarun.comparison import tables
from metarun.comparison.runs import collect
from metarun.comparison.view import view
from metarun.config import compose, options, schema
from metarun.errors import RunError, UserError, install
from metarun.storage.files import replace_file
from metarun.storage.foreign import json_object, refuse_links
from metarun.storage.run_folder import alternatives, held, new_folder, relative
from metarun.sweeps import optuna_study, stored
from metarun.sweeps.job import job, serial
from metarun.sweeps.reports import STATES, report
from metarun.sweeps.stored import MANNER, RECORD, key, record
from metarun.sweeps.watch import ALIVE, Watch, number
from metarun.tracking.console import console

RESUME = ("sweep=resume", "+sweep=resume")


@dataclass(frozen=True)
class Plan:
    """A sweep that has been checked.

    Attributes:
        words: the command line, as Hydra takes it.
        cfg: one of the members, composed, Hydra's node included.
        total: number of jobs; for a search, of trials.
        swept: keys that take several values.
        direction: of a search, ``maximize`` or ``minimize``.
    """

    words: list[str]
    cfg: DictConfig
    total: int
    swept: set[str]
    direction: str

    @property
    def search(self) -> bool:
        """Whether Optuna picks the values."""
        return "optuna" in self.cfg.hydra.sweeper._target_


def sweep(words: list[str]) -> dict[str, Any]:
    """Run the sweep that the words after ``metarun -m`` describe, or go on with it (``sweep=resume``).

    Returns:
        The sweep's folder, the runs' summaries, the table's rows, and the failures, as a JSON-able object.

    Raises:
        UserError: the input is wrong, or the folder holds something else.
        RunError: the launcher does not work.
    """
    resume = any(word in RESUME for word in words)
    words = [word for word in words if word not in RESUME]
    plan = check(words)
    wanted = compose.folder(plan.cfg, "sweep")
    given = any(word.startswith("hydra.sweep.dir=") for word in words)
    if resume:
        top = wanted if given else _newest(wanted, words)
        if top and (top / RECORD).is_file():
            _refuse_another(top, words)
            return _go(plan, top)
        console.print("metarun: there is no such sweep yet, so it starts now", soft_wrap=True)
    if given and wanted.is_dir() and any(wanted.iterdir()):
        how = "add sweep=resume to go on with it" if (wanted / RECORD).is_file() else "it must be empty or new"
        raise UserError(f"hydra.sweep.dir={wanted} is there already: {how}, or name another folder")
    with new_folder([wanted] if given else alternatives(wanted)) as top:
        said = {"words": [word for word in plan.words if not word.startswith("hydra.sweep.dir=")], "started": time.time()}
        replace_file(top / RECORD, lambda handle: handle.write(json.dumps(said, indent=2).encode()))
    return _go(plan, top)  # from here on the folder stays, whatever happens: jobs may wait for their turn elsewhere


def resume_folder(folder: Path, given: list[str]) -> dict[str, Any]:
    """Go on with the sweep in ``folder`` as it was started, but where and how ``given`` says; returns what ``sweep`` returns.

    Raises:
        UserError: the folder, which may be somebody else's, holds more than data; see ``stored.words``.
    """
    plan = check(stored.words(folder, given))
    for path in folder.glob(".submitit/**/*.pkl"):  # answers of earlier jobs, as pickles: never to be read again
        path.unlink()
    return _go(plan, folder)


def check(words: list[str]) -> Plan:
    """Compose and validate every value of a sweep, though not every combination.

    Raises:
        UserError: a value is wrong, or a plugin is missing.
    """
    words = compose.normalise(words)
    params = compose.compose(compose.members(words)[0]).hydra.sweeper.get("params") or {}
    named = {key(word) for word in words}
    space = [*(f"{name}={value}" for name, value in params.items() if name not in named), *words]
    kinds = set()
    for member in compose.members(space):
        cfg = compose.compose(member)
        values = compose.resolve(cfg)
        valid = schema.validate(values)
        kinds.add((valid.data.target.kind.metric, valid.data.target.kind.higher_is_better != issubclass(valid.algo.target, Attacks)))
    for part in ("sweeper", "launcher"):
        _require(part, cfg.hydra[part]._target_)
    options = compose.choices(space)
    intervals = {key(word) for word in space if "interval(" in word}
    swept = intervals | {key(words[0]) for words in options if len(words) > 1}
    direction = "maximize" if all(higher for _, higher in kinds) else "minimize"
    plan = Plan(words, cfg, math.prod(map(len, options)), swept, direction)
    if not plan.search:
        if intervals:
            raise UserError(f"{min(intervals)} takes an interval, which is for a search: add hydra/sweeper=tpe, or list values")
        return plan
    if not valid.trainer.values["val_episodes"]:
        raise UserError("a search chooses by development episodes: add trainer.val_episodes=N")
    if len(kinds) > 1:
        raise UserError("one search cannot rank accuracies and errors: sweep over data of one kind")
    total = cfg.hydra.sweeper.n_trials
    if "GridSampler" in cfg.hydra.sweeper.sampler._target_:  # ends when every combination has been tried
        total = min(total, plan.total)
    return Plan(words, cfg, total, swept, direction)


def _require(part: str, target: str) -> None:
    """A plugin's configuration is here whether or not the plugin is."""
    found = re.match(r"hydra_plugins\.(hydra_\w+)", target)
    if found and not (importlib.util.find_spec("hydra_plugins") and importlib.util.find_spec(f"hydra_plugins.{found[1]}")):
        extra = next(extra for plugin, extra in compose.EXTRAS.items() if plugin in target)
        raise UserError(f"this {part} needs a plugin that is not installed: {install(extra)}")


def _identity(words: list[str]) -> list[str]:
    return [word for word in compose.normalise(words) if not MANNER.match(word)]


def _newest(wanted: Path, words: list[str]) -> Path | None:
    """The newest folder beside the one that a new sweep would have (…/DATE/TIME) whose sweep has the same words."""
    found = [path.parent for path in wanted.parent.parent.glob(f"*/*/{RECORD}")]
    same = [folder for folder in found if _identity(record(folder)["words"]) == _identity(words)]
    return max(same, key=lambda folder: record(folder)["started"], default=None)


def _refuse_another(top: Path, words: list[str]) -> None:
    there, here = _identity(record(top)["words"]), _identity(words)
    if there != here:
        differ = [word for word in [*there, *here] if (word in there) != (word in here)]
        raise UserError(f"{top} holds another sweep ({' '.join(there)}); different: {' '.join(differ) or 'the order'}")


def _go(plan: Plan, top: Path) -> dict[str, Any]:
    """Run what is not finished, then show everything."""
    refuse_links(top)
    with held(top):
        for path in (top / STATES).glob("*.jsonl"):  # of an earlier process
            path.unlink()
        done = optuna_study.continued(top, plan.direction) if plan.search else 0
        before = optuna_study.ended(top) if plan.search else 0
        begun = [path for path in top.iterdir() if path.is_dir() and (path / "config.yaml").is_file()]
        finished = sum((path / "summary.json").is_file() for path in begun)
        console.print(f"sweep of {plan.total} runs in {relative(top)}", markup=False, soft_wrap=True)
        if begun:
            console.print(f"{finished} finished before, {len(begun) - finished} to go on with", markup=False, soft_wrap=True)
        with Watch(top, plan.total, done, plan.swept, not serial(plan.cfg.hydra)) as watch:
            try:
                _launch(plan, top, watch)
            except KeyboardInterrupt as stop:
                said = str(stop) or "interrupted"
                raise KeyboardInterrupt(f"{said}; what has run is kept; go on with: metarun resume {relative(top)}") from None
            failed = watch.having("failed")
            # A search may try the same values again, which is one run: its trials are counted.
            ran = optuna_study.ended(top) - before if plan.search else len(watch.having("finished", "before", "failed"))
            missing = max(0, plan.total - done - ran)
    return _result(plan, top, failed, missing)


def _launch(plan: Plan, top: Path, watch: Watch) -> None:
    """Hand the jobs to Hydra; again, if a killed job has taken the launcher and the rest with it, but no job is killed twice.

    Raises:
        RunError: the launcher broke down although no job was running.
    """
    import hydra

    kept = sys.argv
    killed: set[str] = set()
    while True:
        words = [*plan.words, f"hydra.sweep.dir={_quoted(str(top.resolve()))}", *_threads(plan.cfg.hydra), *_search_words(plan, top)]
        sys.argv = ["metarun", "--multirun", *words]
        try:
            hydra.main(version_base="1.3", config_path=str(options.conf_dir()), config_name="config")(job)()
            return
        except Exception as error:
            lost = watch.having(*ALIVE)
            if not lost:
                if watch.having("failed"):
                    return  # of a search in which no trial has a result
                raise RunError(f"the launcher failed: {' '.join(str(error).split())}") from error
            for name in lost:
                twice = name in killed
                report(top, name, "failed" if twice else "killed", "its process was killed, twice (out of memory?)" if twice else "once")
            killed |= lost.keys()
        finally:
            sys.argv = kept
            _forget_hydra()


def _forget_hydra() -> None:
    """An error inside hydra.main leaves Hydra's global state behind."""
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()


def _threads(hydra: DictConfig) -> list[str]:
    """submitit's local processes would take all cores each; every other launcher shares them out."""
    known = "OMP_NUM_THREADS" in {*os.environ, *hydra.job.env_set}
    if known or "submitit" not in hydra.launcher._target_:
        return []
    return [f"+hydra.job.env_set.OMP_NUM_THREADS={hydra.launcher.cpus_per_task or 1}"]


def _search_words(plan: Plan, top: Path) -> list[str]:
    """What continues a study: its database, the trials that are missing, and job numbers that go on."""
    if not plan.search:
        return []
    finished = optuna_study.continued(top, plan.direction)
    first = 1 + max((number(path.name)[0] for path in top.glob("[0-9]*_*")), default=-1)
    words = [
        f"hydra.sweeper.study_name={optuna_study.NAME}",
        f"hydra.sweeper.storage={_quoted(optuna_study.storage(top))}",
        f"hydra.sweeper.direction={plan.direction}",
        "hydra.sweeper.max_failure_rate=1.0",
        f"hydra.sweeper.n_trials={max(0, plan.total - finished)}",
        f"hydra.sweep.subdir='${{metarun.plus:{first},${{hydra.job.num}}}}_${{name}}'",
    ]
    sampler = plan.cfg.hydra.sweeper.sampler
    if "seed" in sampler and sampler.seed is None:
        words.append(f"hydra.sweeper.sampler.seed={first}")  # repeatable, and yet a continued study draws other numbers
    return words


def _quoted(text: str) -> str:
    """A value that Hydra reads as this text, whatever is in it."""
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", text) + "'"


def _table(plan: Plan, top: Path) -> list[dict[str, Any]]:
    """Print the table of `metarun compare`; returns its rows. A search is ordered by what it searched for."""
    try:
        shape = view(collect([str(top)]).runs, None, None, [], "val" if plan.search else None)
    except UserError as nothing:  # to compare; what failed is told all the same
        console.print(f"metarun: {nothing}", markup=False, soft_wrap=True)
        return []
    print()
    tables.print_rich(shape)
    print(f"\n sweep folder {relative(top)}\n TensorBoard  tensorboard --logdir {relative(top)}\n")
    return tables.records(shape)


def _result(plan: Plan, top: Path, failed: dict[str, str], missing: int) -> dict[str, Any]:
    """The table on stdout, what is missing on stderr, all of it as an object."""
    folders = sorted((path.parent for path in top.glob("*/summary.json")), key=lambda path: number(path.name))
    summaries = [json_object(folder / "summary.json") for folder in folders]
    groups = _table(plan, top) if summaries else []
    if failed or missing:
        what = [f"{len(failed)} of {plan.total} runs failed"] * bool(failed) + [f"{missing} have not run"] * bool(missing)
        lines = [f"metarun: {', '.join(what)}", *(f"  {name}: {reason}" for name, reason in failed.items())]
        for line in [*lines, f"what is missing runs again with: metarun resume {relative(top)}"]:
            console.print(line, markup=False, soft_wrap=True)
    failures = [{"run": name, "reason": reason} for name, reason in itertools.chain(failed.items(), [("", "not run")] * missing)]
    return {"folder": str(top), "runs": summaries, "groups": groups, "failed": failures}
