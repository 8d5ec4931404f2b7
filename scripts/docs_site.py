"""What mkdocs.yml cannot say of the site (a hook of MkDocs): pages from outside docs/, a page per group of settings, and links that fit
both the repository and the site. Only ``on_files`` needs MkDocs, so that a test may check the links without it."""

from __future__ import annotations

import posixpath
import re
from functools import cache
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
OUTSIDE = {"README.md": "overview.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
SETTINGS = "settings/"
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
SEARCH = "assets/search.js"  # docs_search.js on the site
# Room for tables, and comments of settings to be read whole.
STYLE = ".md-grid { max-width: 78rem; }\n.md-typeset pre > code { white-space: pre-wrap; }\n"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml"}


def slug(heading: str, separator: str = "-") -> str:
    """The anchor that GitHub makes of a heading, so that one link serves the repository and the site."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", separator)


@cache
def own_pages() -> dict[str, str]:
    """Markdown files by their place in the repository, to the page of the site: those of docs/, and three from outside."""
    inside = {f"docs/{path.relative_to(CHECKOUT / 'docs').as_posix()}": path for path in sorted((CHECKOUT / "docs").rglob("*.md"))}
    return {place: place.removeprefix("docs/") for place in inside} | OUTSIDE


def links(text: str) -> list[str]:
    """What a page links to within the project, code left out."""
    return [target for target in LINK.findall(FENCE.sub("", text)) if not re.match(r"\w+:", target) and not target.startswith("#")]


@cache
def settings() -> dict[str, list[Path]]:
    """The YAMLs of every group of options; of ``config``, the one above them."""
    groups: dict[str, list[Path]] = {"config": [CHECKOUT / "conf" / "config.yaml"]}
    for path in sorted((CHECKOUT / "conf").glob("*/**/*.yaml")):
        groups.setdefault(path.parent.relative_to(CHECKOUT / "conf").as_posix(), []).append(path)
    groups.pop("hydra/help", None)  # what `metarun --help` prints
    return groups


@cache
def generated() -> dict[str, str]:
    """Pages that no file holds, by their place on the site: groups of settings, and the sources that pages link to."""
    pages = {f"{SETTINGS}{group.replace('/', '-')}.md": _group(group, paths) for group, paths in settings().items()}
    for place in own_pages():
        text = (CHECKOUT / place).read_text(encoding="utf-8")
        for target in links(text):
            found = _from(place, target)
            if found not in own_pages() and not found.startswith(("docs/", "conf/")):
                pages[f"source/{found}.md"] = _source(found)
    return pages


def _group(group: str, paths: list[Path]) -> str:
    name = f"Settings: {group}" if group != "config" else "Settings of every run"
    listed = f"Chosen with `{group}=NAME`, changed with `{group}.KEY=VALUE`." if group != "config" else "Set with `KEY=VALUE`."
    parts = [f"## {path.stem}\n\n```yaml\n{path.read_text(encoding='utf-8').strip()}\n```" for path in paths]
    return "\n\n".join([f"# {name}", listed, *parts]) + "\n"


def _source(place: str) -> str:
    """A file of the project as a page; of a folder, what each of its files begins with."""
    path = CHECKOUT / place
    if path.is_file():
        return f"# {place}\n\n```{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text(encoding='utf-8').rstrip()}\n```\n"
    rows = []
    for file in sorted(path.rglob("*.py")):
        first = file.read_text(encoding="utf-8").lstrip('"').partition("\n")[0].rstrip('"')
        if not file.name.startswith("_"):
            rows.append(f"| `{file.relative_to(path).as_posix()}` | {first.replace('|', chr(92) + '|')} |")
    return "\n".join([f"# {place}", "", "| file | |", "| --- | --- |", *rows]) + "\n"


def _from(place: str, target: str) -> str:
    """Where in the repository a link of the file at ``place`` leads, without its anchor."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(place), target.partition("#")[0]))


def site_link(place: str, target: str) -> str:
    """What a link of the repository's file at ``place`` is on the site; the same where it leads nowhere."""
    found, (_, mark, anchor) = _from(place, target), target.partition("#")
    if found in own_pages():
        page = own_pages()[found]
    elif found.startswith("docs/"):
        page = found.removeprefix("docs/")
    elif found.startswith("conf/") and found.endswith(".yaml"):
        group, _, option = found.removeprefix("conf/").removesuffix(".yaml").rpartition("/")
        page, mark, anchor = f"{SETTINGS}{(group or 'config').replace('/', '-')}.md", "#", slug(option)
    elif f"source/{found}.md" in generated():
        page = f"source/{found}.md"
    else:
        return target
    return posixpath.relpath(page, posixpath.dirname(own_pages()[place]) or ".") + mark + anchor


def rewritten(place: str) -> str:
    """The text of a page with its links as the site has them."""

    def one(match: re.Match[str]) -> str:
        inside = links(f"]({match[0]})")
        return site_link(place, match[0]) if inside else match[0]

    text = (CHECKOUT / place).read_text(encoding="utf-8")
    parts = re.split(rf"({FENCE.pattern})", text, flags=FENCE.flags)
    return "".join(part if i % 2 else LINK.sub(one, part) for i, part in enumerate(parts))


# ---- what MkDocs calls ----


def on_config(config: Any) -> Any:
    """Anchors as GitHub makes them, the settings in the navigation, and nothing from elsewhere."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    config.extra["polyfills"] = [SEARCH]
    config.extra_css.append("assets/site.css")
    for section in config.nav:
        for entries in section.values():
            for entry in entries:
                for title, page in entry.items():
                    if page == SETTINGS:
                        entry[title] = [f"{SETTINGS}{group.replace('/', '-')}.md" for group in settings()]
    return config


def on_files(files: Any, config: Any) -> Any:
    """All pages, with the site's links."""
    from mkdocs.structure.files import File

    for place, page in own_pages().items():
        if (old := files.get_file_from_path(page)) is not None:
            files.remove(old)
        files.append(File.generated(config, page, content=rewritten(place)))
    for page, text in generated().items():
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "assets/site.css", content=STYLE))
    files.append(File.generated(config, SEARCH, abs_src_path=str(CHECKOUT / "scripts" / "docs_search.js")))
    return files
