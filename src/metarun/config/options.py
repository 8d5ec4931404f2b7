"""What there is to choose from: the configuration folder, the user's own, their groups and options, and the help page.
Imports next to nothing, so that ``--help`` and ``list`` answer at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from string import Template

from metarun.errors import UserError, nearest
from metarun.extensions.sources import sources


def conf_dir() -> Path:
    """The configuration folder: the installed package's own, or the checkout's."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def files() -> dict[str, dict[str, Path]]:
    """By group and option, the option's YAML; metarun's own and those of every source. An option of a folder is called FOLDER/NAME.

    Raises:
        UserError: a source has a group that is none, or an option that is there already.
    """
    seen: dict[str, str] = {}
    found: dict[str, dict[str, Path]] = {}
    for owner, folder in [("metarun", conf_dir()), *((source.name, source.conf) for source in sources())]:
        for path in sorted(folder.rglob("*.yaml")):
            relative = path.relative_to(folder).with_suffix("").as_posix()
            group, _, option = relative.rpartition("/") if relative.startswith("hydra/") else relative.partition("/")
            name = f"{group}={option}" if option else group
            if name in seen:
                raise UserError(f"{path}: {seen[name]} has {name} already; give the file another name")
            seen[name] = owner
            if owner != "metarun" and not (option and group.partition("/")[0] in (*found, "hydra")):
                raise UserError(f"{path} is in no group of options{nearest(group, found)} (groups: {', '.join(found)})")
            if option and not group.startswith("hydra/"):
                found.setdefault(group, {})[option] = path
    return {group: dict(sorted(options.items())) for group, options in sorted(found.items())}


def groups() -> dict[str, list[str]]:
    """Options of every config group, by group."""
    return {group: list(options) for group, options in files().items()}


def descriptions() -> dict[str, dict[str, str]]:
    """By group and option, the comment that opens the option's YAML."""
    return {group: {option: _first_comment(path) for option, path in options.items()} for group, options in files().items()}


def folded(options: Iterable[str], folder: str = "") -> list[str]:
    """The options of a group that lie in ``folder`` itself ("paper/"; "": in none), and of folders in it, "paper/full/", the name alone."""
    split = (option.removeprefix(folder).partition("/") for option in options if option.startswith(folder))
    return list(dict.fromkeys(f"{folder}{head}{slash}" for head, slash, _ in split))


def _first_comment(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
    return lines[0].lstrip("# ") if lines and lines[0].startswith("#") else ""


def help_page() -> str:
    """``conf/hydra/help/metarun.yaml`` with the groups filled in, as Hydra's own ``--help`` would, in a tenth of its time."""
    import yaml

    page = yaml.safe_load((conf_dir() / "hydra" / "help" / "metarun.yaml").read_text(encoding="utf-8"))["template"]
    listed = "\n".join(f"    {group:<11} {' '.join(folded(options))}" for group, options in groups().items())
    return Template(page).substitute(APP_CONFIG_GROUPS=listed.lstrip())
