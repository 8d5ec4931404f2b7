"""From the command line's words to a composed configuration, with one friendly line for whatever Hydra objects to.
Imports neither torch nor pydantic, so help and completion answer at once."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.errors import UserError, nearest


def conf_dir() -> Path:
    """The configuration folder: the installed package's own, or the checkout's."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def groups() -> dict[str, list[str]]:
    """Options of every config group, by group."""
    folders = sorted(path for path in conf_dir().iterdir() if path.is_dir() and path.name != "hydra")
    return {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in folders}


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """A composed config as plain resolved values.

    Raises:
        UserError: an interpolation leads nowhere, or a mandatory value (???) is missing.
    """
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration does not resolve: {str(error).splitlines()[0]}") from None
    assert isinstance(values, dict)
    values.pop("hydra", None)
    return {str(key): value for key, value in values.items() if key != "experiment"}


def compose(overrides: list[str]) -> DictConfig:
    """Compose the configuration from overrides, without running anything.

    Raises:
        UserError: see ``explain_hydra``.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="metarun"):
        try:
            return hydra_compose("config", overrides=normalise(overrides))
        except Exception as error:
            raise explain_hydra(error, overrides) from None


def normalise(overrides: list[str]) -> list[str]:
    """Accept ``+experiment=x`` for ``experiment=x``: the group has a default, so Hydra takes the plain form only."""
    return [re.sub(r"^\+experiment=", "experiment=", word) for word in overrides]


def flatten(node: Any, prefix: str = "") -> list[str]:
    """All dotted keys of nested dicts, inner nodes included."""
    if not isinstance(node, dict):
        return []
    return [name for key, value in node.items() for name in (f"{prefix}{key}", *flatten(value, f"{prefix}{key}."))]


def known_keys(overrides: list[str]) -> list[str]:
    """All keys of the configuration that the group choices among ``overrides`` lead to."""
    from hydra import compose as hydra_compose

    names = groups()
    choices = [word for word in overrides if (found := re.match(r"(\w+)=(\w+)$", word)) and found[2] in names.get(found[1], [])]
    return flatten(OmegaConf.to_container(hydra_compose("config", overrides=choices), resolve=False))


def explain_hydra(error: Exception, overrides: list[str]) -> Exception:
    """One friendly line for what Hydra or OmegaConf say; an error that is none of theirs comes back as it is."""
    from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException

    if isinstance(error, OverrideParseException):
        return UserError(f"cannot read '{error.override}': write KEY=VALUE, and quote values with special characters, as in 'name=\"a,b\"'")
    if isinstance(error, MissingConfigException):
        group, _, option = str(error.missing_cfg_file or "").rpartition("/")
        options = groups().get(group, [])
        if not options:
            return UserError(f"there is no config group '{group}'{nearest(group, groups())}")
        return UserError(f"{group}={option} does not exist{nearest(option, options)} (known: {', '.join(options)})")
    if isinstance(error, (ConfigCompositionException, HydraException, OmegaConfBaseException)):
        text = " ".join(str(error).split())
        if found := re.search(r"Could not (?:override|append to|delete from config[. ]*)? ?'?(?:config\. )?'?([\w.@/]+)'", text):
            key = found[1]
            known = [*_all_keys(overrides), *groups()]
            if "already at" in text or "An item is already" in text:
                return UserError(f"+{key}: the key exists already, so write {key}=VALUE without the plus sign")
            return UserError(f"unknown key '{key}'{_nearest_key(key, known)}")
        if found := re.search(r"Could not override '([\w/@.]+)'\. No match in the defaults list", text):
            return UserError(f"there is no config group '{found[1]}'{nearest(found[1], groups())}")
        return UserError(text)
    return error


def _nearest_key(key: str, known: list[str]) -> str:
    """Nearest by the whole dotted name, or else by the last part alone (``inner_lr`` for ``algo.inner_lr``)."""
    leaf = key.rpartition(".")[2]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    close = close or [k for k in known if k.rpartition(".")[2] == leaf][:1]
    close = close or difflib.get_close_matches(leaf, [k.rpartition(".")[2] for k in known], n=1, cutoff=0.6)
    if close and close[0] not in known:
        close = [k for k in known if k.rpartition(".")[2] == close[0]][:1]
    return f"; did you mean '{close[0]}'?" if close else " (see `metarun --cfg job` for all keys)"


def _all_keys(overrides: list[str]) -> list[str]:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="metarun"):
        return known_keys(overrides)


def descriptions() -> dict[str, dict[str, str]]:
    """By group and option, the comment that opens the option's YAML."""
    return {
        group: {option: _first_comment(conf_dir() / group / f"{option}.yaml") for option in options} for group, options in groups().items()
    }


def _first_comment(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
    return lines[0].lstrip("# ") if lines and lines[0].startswith("#") else ""


def override(values: dict[str, Any], words: list[str]) -> dict[str, Any]:
    """A stored, resolved config with command-line words applied: whole groups (``data=…``), then single keys in order.

    ``way``, ``shot`` and ``query`` mean the evaluation episodes.

    Raises:
        UserError: a word that cannot be read, an unknown key or option.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    changed = OmegaConf.create(values)
    names = groups()
    chosen = [word for word in words if word.partition("=")[0] in names]
    if chosen:
        fresh = resolve(compose(chosen))
        for word in chosen:
            changed[word.partition("=")[0]] = fresh[word.partition("=")[0]]
    for word in words:
        if word in chosen:
            continue
        try:
            parsed = OverridesParser.create().parse_override(word)
        except HydraException as error:
            raise explain_hydra(error, words) from None
        key, value = parsed.key_or_group, parsed.value()
        if OmegaConf.select(changed, key, throw_on_missing=False, default=_ABSENT) is _ABSENT:
            raise UserError(f"unknown key '{key}'{_nearest_key(key, flatten(OmegaConf.to_container(changed)))}")
        OmegaConf.update(changed, key, value)
        if key in ("way", "shot", "query"):
            OmegaConf.update(changed, f"episode.eval.{key}", value)
    return resolve(changed)


_ABSENT = object()
