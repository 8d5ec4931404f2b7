"""From the command line's words to a composed configuration, with one friendly line for whatever Hydra objects to.
Imports neither torch nor pydantic, so completion answers at once."""

from __future__ import annotations

import difflib
import errno
import re
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from metarun.config.nested import nodes
from metarun.config.options import conf_dir, folded, groups
from metarun.config.stored import reference_in
from metarun.errors import RunError, UnknownKeys, UserError, install, nearest
from metarun.extensions.sources import sources
from metarun.extensions.targets import place

EXTRAS = {"joblib": "joblib", "submitit": "slurm", "ray": "ray", "optuna": "optuna"}  # of Hydra's plugins, what to install


class Sources(SearchPathPlugin):
    """The user's own options, after metarun's, wherever Hydra composes: here, for a sweep, for an answer of its own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for source in sources():
            search_path.append(source.name, f"file://{source.conf}")


Plugins.instance().register(Sources)


def compose(words: list[str]) -> DictConfig:
    """Compose the configuration, Hydra's own node included, from overrides; runs and writes nothing.

    Raises:
        UserError: a word cannot be read, or names what does not exist.
    """
    words = normalise(words)
    try:
        with _initialised():
            return hydra_compose("config", overrides=words, return_hydra_config=True)
    except Exception as error:
        raise explain(error, words) from None


def _initialised() -> initialize_config_dir:
    # An error inside hydra.main leaves Hydra's global state behind, and two states at a time are refused.
    GlobalHydra.instance().clear()
    return initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="metarun")


def normalise(words: list[str]) -> list[str]:
    """Overrides as Hydra wants them: ``+GROUP=x`` becomes ``GROUP=x``, since every group has a default here; ``~/x`` below the home folder.

    Raises:
        UserError: there is no key, or a group is chosen twice (Hydra would silently take the last).
    """
    names = "|".join(groups())
    words = [re.sub(rf"^\+({names})=", r"\1=", word) for word in words]
    words = [re.sub(r"=~(?=/|$)", lambda _: f"={Path.home()}", word, count=1) for word in words]  # a shell leaves it after a dotted key
    chosen: dict[str, str] = {}
    for word in words:
        group = word.partition("=")[0]
        if not group:
            raise UserError(f"cannot read '{word}': write KEY=VALUE")
        if re.fullmatch(names, group) and chosen.setdefault(group, word) != word:
            raise UserError(f"{group} is chosen twice, {chosen[group]} and {word}; keep one")
    return words


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """A composed config as plain resolved values, without Hydra's node.

    Raises:
        UserError: an interpolation leads nowhere, or a mandatory value (???) is missing.
    """
    kept = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in ("hydra", "experiment")])
    try:
        values = OmegaConf.to_container(kept, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise explain(error, []) from None
    if reference := reference_in(values):
        raise UserError(f"{reference} is still to be looked up, which a stored configuration never is: write the value itself")
    return {str(key): value for key, value in values.items()}  # type: ignore[union-attr]


def folder(cfg: DictConfig, kind: str) -> Path:
    """Where a composed config's ``run`` or ``sweep`` goes.

    Raises:
        UserError: the path is empty or refers to what does not exist.
    """
    try:
        path = cfg.hydra[kind].dir
    except OmegaConfBaseException as error:
        raise explain(error, []) from None
    if not path:
        raise UserError(f"hydra.{kind}.dir is empty; name a folder")
    return Path(path).expanduser()


def members(words: list[str]) -> list[list[str]]:
    """Some members of the sweep that ``words`` describe: every value occurs in at least one of them.

    Their number is the sum, not the product, of the numbers of values, so that a large sweep is checked quickly.

    Raises:
        UserError: a word cannot be read.
    """
    values = choices(words)
    first = [options[0] for options in values]
    return [first, *([*first[:i], option, *first[i + 1 :]] for i, options in enumerate(values) for option in options[1:])]


def choices(words: list[str]) -> list[list[str]]:
    """For each of ``words``, the words that a sweep puts in its place; the sweep has the product of them all.

    Raises:
        UserError: a word cannot be read.
    """
    words = normalise(words)
    try:
        with _initialised():
            overrides = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(words)
            return [_values(override) for override in overrides]
    except HydraException as error:
        raise explain(error, words) from None


def parse(word: str) -> Override:
    """One word of the command line, taken apart.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return OverridesParser.create().parse_overrides([word])[0]
    except HydraException as error:
        raise explain(error, [word]) from None


def _values(override: Override) -> list[str]:
    """The words that a sweep over this override would use; an interval is represented by its start."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    found = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else [override.value().start]  # type: ignore[union-attr]
    if not found:
        raise UserError(f"{override.input_line} matches nothing")
    return [f"{override.get_key_element()}={value}" for value in found]


def override(values: dict[str, Any], words: list[str]) -> dict[str, Any]:
    """A stored, resolved config with command-line words applied: whole groups (``data=…``), then single keys in order.

    ``way``, ``shot`` and ``query``, and what else shapes episodes, mean the evaluation episodes: ``episode.unlabelled``, ``episode.way``.

    Raises:
        UserError: a word that cannot be read, an unknown key or option.
    """
    words = normalise(words)
    changed = OmegaConf.create(values)
    chosen = [word for word in words if word.partition("=")[0] in groups()]
    if chosen:
        fresh = resolve(compose(chosen))
        for word in chosen:
            group = word.partition("=")[0]
            if group not in fresh:
                raise UserError(f"{word} builds a whole new run; a finished one takes single groups and keys, such as data=… or way=…")
            changed[group] = fresh[group]
    known = _names(changed)
    for word in words:
        if word in chosen:
            continue
        parsed = parse(word)
        key = parsed.key_or_group
        if parsed.is_sweep_override() or parsed.type is not OverrideType.CHANGE:
            raise UserError(f"'{word}' is not KEY=VALUE with one value, which is all that a finished run takes")
        if key not in known and key not in _later(values, key):
            raise _unknown(key, known)
        value = parsed.value()
        OmegaConf.update(changed, key, value)
        if (of_both := f"episode.eval.{key.removeprefix('episode.')}") in known:
            OmegaConf.update(changed, of_both, value)
    return resolve(changed)


def _later(values: dict[str, Any], key: str) -> list[str]:
    """The dotted keys that the option of a stored section has today, where ``key`` is in one: an earlier version may not have had them."""
    group = key.partition(".")[0]
    section = values.get(group)
    name = section.get("name") if isinstance(section, dict) else None
    if name not in groups().get(group, []):
        return []
    fresh = resolve(compose([f"{group}={name}"]))
    same = fresh[group].get("_target_") == section.get("_target_")  # type: ignore[union-attr]
    return _names(OmegaConf.create({group: fresh[group]})) if same else []


def _names(cfg: DictConfig) -> list[str]:
    """All dotted keys, sections included."""
    return [name for name, _ in nodes(OmegaConf.to_container(cfg, resolve=False))]  # type: ignore[arg-type]


def _known_keys(words: list[str]) -> list[str]:
    """All keys of the configuration that the group choices among ``words`` lead to."""
    names = groups()
    choices = [word for word in words if (found := re.match(r"(\w+)=([\w/]+)$", word)) and found[2] in names.get(found[1], [])]
    with _initialised():
        return _names(hydra_compose("config", overrides=choices))


def explain(error: Exception, words: list[str]) -> Exception:
    """One friendly line for what Hydra or OmegaConf say; an error that is none of theirs comes back as it is."""
    if isinstance(error, OverrideParseException):
        return UserError(f"cannot read '{error.override}': write KEY=VALUE, and quote values with special characters, as in 'name=\"a,b\"'")
    if isinstance(error, MissingConfigException):
        path = str(error.missing_cfg_file)
        group, _, option = path.partition("/") if path.partition("/")[0] in groups() else path.rpartition("/")
        options = sorted({*groups().get(group, []), *(error.options or [])}) if group in groups() else error.options
        if extra := next((extra for plugin, extra in EXTRAS.items() if group.startswith("hydra/") and option.startswith(plugin)), None):
            return UserError(f"{group}={option} needs a plugin that is not installed: {install(extra)}")
        if options is None:
            return UserError(f"there is no config group '{group}'{nearest(group, groups())}")
        return UserError(f"{group}={option} does not exist{nearest(option, options)} (known: {', '.join(folded(options)) or 'none'})")
    if isinstance(error, InterpolationKeyError):
        key = str(error).partition("'")[2].partition("'")[0]
        return UserError(f"the configuration needs the key '{key}' (as ${{{key}}}), which does not exist")
    text = " ".join(str(error).split())
    if isinstance(error, ValueError) and "integer string conversion" in text:
        key = max(words, key=len).partition("=")[0]
        return UserError(f"{key} has more digits than any number here may have; write a number that fits 64 bits")
    if "config group override must be a string" in text.lower():
        return UserError("a group takes the name of one of its options; `metarun list` shows them")
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return error
    if found := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'", text):
        return UserError(f"{found[1]} gives several values: add -m for a sweep over them, or write [a,b] for a list")
    if found := re.match(r"Could not append to config\. An item is already at '(.+?)'", text):
        return UserError(f"the key '{found[1]}' exists already; write {found[1]}=VALUE without the plus sign")
    if found := re.match(r"Could not (?:override|append|delete)(?: from config\.)? '([^'=]+)", text):
        return _unknown(found[1], [*_known_keys(words), *groups()])
    if found := re.match(r"Override \S+ looks like a config group override, but config group '(.+?)'", text):
        return _unknown(found[1], [*_known_keys(words), *groups()])
    if found := re.match(r"Error merging override ([^=]+)=", text):
        return UserError(f"{found[1]} is not a key that takes such a value; `metarun --cfg job` shows all keys and values")
    return UserError(f"the configuration cannot be composed: {text}")


def _unknown(key: str, known: list[str]) -> UserError:
    """Nearest in the same section, or else by the whole dotted name or the last part alone (``inner_lr`` for ``algo.inner_lr``)."""
    if key in known:  # it is there, but a group or a section
        return UserError(f"{key} cannot be set or removed as a whole; choose an option ({key}=NAME) or set its keys ({key}.KEY=VALUE)")
    section, _, leaf = key.rpartition(".")
    inside = [k for k in known if section and k.startswith(f"{section}.") and k.rpartition(".")[2] not in ("_target_", "name")]
    close = difflib.get_close_matches(key, inside, n=1, cutoff=0.7)
    if section not in known:
        leaves = {k.rpartition(".")[2]: k for k in reversed(known)}
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
        close = close or [leaves[name] for name in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.6)]
    if close:
        return UserError(f"unknown key '{key}'; did you mean '{close[0]}'?")
    shown = f"known here: {', '.join(inside)}" if inside else "`metarun --cfg job` shows all keys"
    return UserError(f"unknown key '{key}' ({shown})")


def _of_recipe(keys: list[str], words: list[str]) -> str | None:
    """What to say of keys that nobody has written, but a recipe (``experiment=…``) has set for options other than the chosen ones."""
    recipe = next((word for word in words if word.startswith("experiment=")), None)
    given = {word.lstrip("+~").partition("=")[0] for word in words}
    if not recipe or not given.isdisjoint(keys):
        return None
    without = " ".join(f"~{key}" for key in keys)
    return f"{recipe} sets {' and '.join(keys)}, which the options chosen here do not have; leave out: {without}"


def line_and_status(error: Exception, words: list[str]) -> tuple[str, int]:
    """One line for people about whatever went wrong with ``words``, and the exit status that goes with it."""
    if not isinstance(error, (UserError, RunError, OSError)):
        error = explain(error, words)
    if isinstance(error, UnknownKeys) and (told := _of_recipe(error.keys, words)):
        return told, 2
    if isinstance(error, (UserError, RunError)):
        return str(error), 2 if isinstance(error, UserError) else 1
    text = " ".join(str(error).split())
    if isinstance(error, (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError)) or _impossible(error):
        return f"cannot read or write {error.filename}: {error.strerror}; name another file or folder", 2  # type: ignore[attr-defined]
    if isinstance(error, MemoryError) or "allocate" in text:  # numpy's, torch's on a CPU, on a GPU
        return f"out of memory ({text[:100] or type(error).__name__}); make episodes, net or data smaller, or engine.chunk=1", 1
    return f"failed: {place(error)}{type(error).__name__}: {text} (METARUN_DEBUG=1 shows where)", 1


def _impossible(error: Exception) -> bool:
    """A read-only file system, a name that no file system takes, links in a circle."""
    return isinstance(error, OSError) and error.errno in (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
