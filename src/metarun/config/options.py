"""What there is to choose from: the configuration folder, its groups, their options and the help page.
Imports next to nothing, so that ``--help`` and ``list`` answer at once."""

from __future__ import annotations

from pathlib import Path
from string import Template


def conf_dir() -> Path:
    """The configuration folder: the installed package's own, or the checkout's."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def groups() -> dict[str, list[str]]:
    """Options of every config group, by group."""
    folders = sorted(path for path in conf_dir().iterdir() if path.is_dir() and path.name != "hydra")
    return {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in folders}


def descriptions() -> dict[str, dict[str, str]]:
    """By group and option, the comment that opens the option's YAML."""
    return {
        group: {option: _first_comment(conf_dir() / group / f"{option}.yaml") for option in options} for group, options in groups().items()
    }


def _first_comment(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
    return lines[0].lstrip("# ") if lines and lines[0].startswith("#") else ""


def help_page() -> str:
    """``conf/hydra/help/metarun.yaml`` with the groups filled in, as Hydra's own ``--help`` would, in a tenth of its time."""
    import yaml

    page = yaml.safe_load((conf_dir() / "hydra" / "help" / "metarun.yaml").read_text(encoding="utf-8"))["template"]
    listed = "\n".join(f"    {group:<11} {' '.join(options)}" for group, options in groups().items())
    return Template(page).substitute(APP_CONFIG_GROUPS=listed.lstrip())
