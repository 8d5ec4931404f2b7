"""The schema: a composed configuration is checked before anything is read or written.
Each section is checked against the signature of what it configures, so a key, its type and its range are written down once."""

from __future__ import annotations

import collections.abc
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Annotated, Any, Literal, NamedTuple, get_origin, get_type_hints

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from metarun.errors import UnknownKeys, UserError, nearest
from metarun.extensions import targets
from metarun.problem import EpisodeSpec

# What a section may configure: classes below a package, and of which kind; or of the user's own folders (``extensions``).
TARGETS = {
    "algo": ("metarun.algos.", "metarun.algorithm.Algorithm"),
    "data": ("metarun.data.", "metarun.data.base.Dataset"),
    "net": ("metarun.nets.", "metarun.nets.base.Net"),
    "optim": ("metarun.optim.", "metarun.optim.MetaOptimizer"),
    "protocol": ("metarun.protocols.", "metarun.protocols.base.Protocol"),
}
FIXED = {
    "augment": "metarun.data.augment.Augment",
    "engine": "metarun.engine.Engine",
    "trainer": "metarun.trainer.Trainer",
    "logger": "metarun.tracking.tracker.Tracker",
}
SECTIONS = (*TARGETS, *FIXED, "episode")
SINGLE = tuple(name for name in TARGETS if name != "protocol")  # sections of one class; protocol has one for each way of asking
LARGEST = {int: 2**63 - 1, float: 1e30}  # by type, in size: what tensors can hold, and still be reckoned with
WIDEST = 100_000  # classes of an episode
OF_OLD = {"episodes": "metarun.protocols.episodes.OfEpisodes", "verification": "metarun.protocols.verification.Verification"}
# Sections that the first run folders lack; their keys have defaults.
LATER: dict[str, Any] = {"augment": {}, "protocol": {name: {"_target_": path} for name, path in OF_OLD.items()}}


@dataclass(frozen=True, kw_only=True)
class Root:
    """The root keys; one with a default came later than the first run folders, which lack it."""

    way: Annotated[int, Ge(1)]
    shot: Annotated[int, Ge(0)]
    query: Annotated[int, Ge(1)]
    seed: Annotated[int, Ge(0), Le(2**63 - 1)]
    device: str
    precision: Literal["fp32", "bf16"]
    name: str
    init_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class Episode(EpisodeSpec):
    """The episode section: common values, and those of training and evaluation."""

    train: dict[str, Any]
    eval: dict[str, Any]


class Section(NamedTuple):
    """A section that has been checked: what it configures, and with which keyword arguments. Called, it builds."""

    target: Any
    values: dict[str, Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.build(*arguments)

    def build(self, *arguments: Any, **changes: Any) -> Any:
        """The object: ``target(*arguments, **values)``, with ``changes`` to the values."""
        with targets.told(f"{self.target.__name__} cannot be built", self.target):
            return self.target(*arguments, **self.values | changes)


@dataclass(frozen=True, kw_only=True)
class Valid:
    """A configuration that has been checked."""

    root: Root
    algo: Section
    data: Section
    net: Section
    optim: Section
    augment: Section
    engine: Section
    trainer: Section
    logger: Section
    protocol: dict[str, Section]  # by name, in the order in which they are asked
    train: EpisodeSpec
    eval: EpisodeSpec


def validate(config: dict[str, Any]) -> Valid:
    """Check every section of a resolved config; nothing is read or written before this has passed.

    Raises:
        UserError: see ``check``.
    """
    config = LATER | config
    for section in SECTIONS:
        if section not in config:
            raise UserError(f"the configuration lacks the section {section}")
        if not isinstance(config[section], dict):
            raise UserError(
                f"{section}={_shown(config[section])} is not possible: it should be a group of keys, set as {section}.KEY=VALUE"
            )
    for section in SINGLE:
        name = config[section].get("name")
        if not re.fullmatch(r"[\w .,+-]{1,100}", str(name)):  # it is printed, here and there as markup
            raise UserError(f"{section}.name={name!r} is not possible: letters, digits, spaces and - . , + make a name")
    for name, part in config["protocol"].items():
        if not isinstance(part, dict):
            raise UserError(f"protocol.{name}={_shown(part)} is not possible: it should be a group of keys, as protocol=episodes has")
    root = Root(**check(Root, {key: value for key, value in config.items() if key not in SECTIONS}, ""))
    sections = {name: _section(config, name) for name in (*SINGLE, *FIXED)}
    protocols = {name: _section({f"protocol.{name}": part}, f"protocol.{name}") for name, part in config["protocol"].items()}
    episode = check(Episode, without_meta(config["episode"]), "episode.")
    specs = {part: EpisodeSpec(**check(EpisodeSpec, episode[part], f"episode.{part}.")) for part in ("train", "eval")}
    if sections["algo"].target.reads == "attributes":
        specs = {part: replace(spec, shot=0) for part, spec in specs.items()}
    elif not sections["data"].target.kind.acts:  # an actor may be judged from its first action on
        shots = {"shot": root.shot, **{f"episode.{part}.shot": spec.shot for part, spec in specs.items()}}
        if key := next((key for key, shot in shots.items() if shot == 0), None):
            raise UserError(f"{key}=0 is not possible: it should be 1 or more, unless algo is a zero-shot method such as protonet_zeroshot")
    if specs["train"].unknown:
        raise UserError(f"episode.train.unknown={specs['train'].unknown} is not possible: queries of no class are for episode.eval.unknown")
    for part, spec in specs.items():
        sections["data"].target.kind.check(spec, partial(_key, root, part, spec), config["data"]["name"])
        if spec.way > WIDEST:
            raise UserError(f"episode.{part}.way={spec.way} is out of range: choose way <= {WIDEST}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", root.device):
        raise UserError(
            f"device={root.device} is not a device: use auto, cpu, cuda or cuda:N{nearest(root.device, ['auto', 'cpu', 'cuda'])}"
        )
    if not re.fullmatch(r"[^/\x00-\x1f]{1,150}", root.name):
        raise UserError(f"name={root.name!r} is not possible: it names the run's folder, so it has 1 to 150 characters and no slash")
    return Valid(root=root, train=specs["train"], eval=specs["eval"], protocol=protocols, **sections)


def _key(root: Root, part: str, spec: EpisodeSpec, field: str) -> str:
    """What the user calls a field of an episode's shape: by the root key, where it comes from there."""
    return field if getattr(spec, field) == getattr(root, field, None) else f"episode.{part}.{field}"


def _section(config: dict[str, Any], name: str) -> Section:
    """A section by name. A key of the type ``Method``, as ``algo.member``, is a section of the same group, and becomes its maker."""
    target, values = target_of(config, name), without_meta(config[name])
    for key, field in schema(target).model_fields.items():
        if get_origin(field.annotation) is collections.abc.Callable and key in values:
            part = f"{name}.{key}"
            if not isinstance(values[key], dict):
                raise UserError(f"{part}={_shown(values[key])} is not possible: it should be a group of keys, set as {part}.KEY=VALUE")
            values[key] = _section({part: values[key]}, part)  # and no bound method, of which no two are equal
    return Section(target, check(target, values, f"{name}."))


def target_of(config: dict[str, Any], section: str) -> Any:
    """The class a section configures.

    Raises:
        UserError: the section names something that is not metarun's own, or no longer there.
    """
    if section in FIXED:
        return _locate(FIXED[section])
    path, (package, base) = str(config[section].get("_target_")), TARGETS[section.partition(".")[0]]
    if not path.startswith("metarun."):
        return targets.load(f"{section}._target_", path, _locate(base), package)
    if not path.startswith(package):
        raise UserError(f"{section}._target_={path} is refused: only classes below {package}* are run from a configuration")
    try:
        target = _locate(path)
    except (ImportError, AttributeError):
        raise UserError(f"{section}._target_={path} does not exist in this version of metarun") from None
    if not (inspect.isclass(target) and issubclass(target, _locate(base)) and not inspect.isabstract(target)):
        raise UserError(f"{section}._target_={path} is refused: it is no {base.rpartition('.')[2]} that a configuration may run")
    return target


def _locate(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def without_meta(section: dict[str, Any]) -> dict[str, Any]:
    """A section's values without the keys that name it."""
    return {key: value for key, value in section.items() if key not in ("_target_", "name")}


@cache
def schema(target: Any) -> type[BaseModel]:
    """A strict model of the keyword-only parameters of a class: what its section of the YAML may hold.

    A constructor that hands ``**settings`` on takes those of the class above it as well. A parameter with a default came later than the
    first run folders, which lack its key.
    """
    fields: dict[str, Any] = {}
    for owner in target.__mro__:
        if "__init__" not in vars(owner):
            continue
        parameters = inspect.signature(owner.__init__).parameters.values()
        keys = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
        with targets.told(f"the types of {owner.__name__}'s parameters cannot be read", owner):
            # A dataclass's constructor has fields of the classes above it, whose types are known where these are written.
            known = {name: value for base in reversed(owner.__mro__) for name, value in vars(sys.modules[base.__module__]).items()}
            hints = get_type_hints(owner.__init__, localns=known, include_extras=True)
        if untyped := [p.name for p in keys if p.name not in hints]:
            raise UserError(f"{owner.__name__}.__init__: give the parameter {untyped[0]} a type, by which its values are checked")
        fields = {p.name: (hints[p.name], ... if p.default is p.empty else p.default) for p in keys} | fields
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return create_model(target.__name__, __config__=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False), **fields)


def check(target: Any, values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The values of one section, validated.

    Raises:
        UserError: an unknown or missing key, a wrong type, a value out of range; one line, naming key, value and mend.
    """
    model = schema(target)
    for key, value in _numbers(values, prefix):
        if not -LARGEST[type(value)] <= value <= LARGEST[type(value)] and value == value and abs(value) != float("inf"):
            what = "a number below 2^63" if isinstance(value, int) else "a number up to 1e30 in size, as weights have 32 bits"
            raise UserError(f"{key}={_shown(value)[:40]} is not possible: it should be {what}")
    try:
        valid = model.model_validate({str(key): value for key, value in values.items()})
    except ValidationError as error:
        told = _explain(error, prefix, list(model.model_fields))
        unknown = [f"{prefix}{one['loc'][0]}" for one in error.errors(include_url=False) if one["type"] == "extra_forbidden"]
        raise (UnknownKeys(told, unknown) if unknown else UserError(told)) from None
    return {name: getattr(valid, name) for name in model.model_fields}


def _numbers(value: Any, key: str) -> Iterator[tuple[str, int | float]]:
    """All numbers in nested values, with the keys that set them."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, f"{key}{name}" if key.endswith(".") or not key else f"{key}.{name}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _numbers(inner, f"{key}[{i}]")
    elif type(value) in LARGEST:
        yield key, value


def _explain(error: ValidationError, prefix: str, known: list[str]) -> str:
    errors: list[Any] = error.errors(include_url=False)
    first = errors[0]
    name, value = first["loc"][0], first["input"]
    if first["type"] == "extra_forbidden":
        return f"unknown key {prefix}{name}{nearest(name, known)} (known: {', '.join(prefix + k for k in known)})"
    if first["type"] == "missing":
        return f"{prefix}{name} is missing from the configuration"
    # Alternatives of a union are one error each; integers in the location index a list.
    wanted = [_wanted(e) for e in errors if e["loc"][0] == name and e["input"] is value]
    key = prefix + name + "".join(f"[{step}]" for step in first["loc"][1:] if isinstance(step, int))
    hint = ""
    if isinstance(value, str):
        hint = nearest(value, re.findall(r"'([^']+)'", " ".join(wanted)))
    elif isinstance(value, float) and value.is_integer() and "an integer" in wanted:
        hint = f"; did you mean {int(value)}?"
    return f"{key}={_shown(value)} is not possible: it should be {' or '.join(dict.fromkeys(wanted))}{hint}"


def _wanted(error: dict[str, Any]) -> str:
    """What should stand in place of the value, in words that follow "it should be"."""
    context = error.get("ctx", {})
    plain = {
        "int_type": "an integer",
        "int_from_float": "an integer",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "string_type": "a text (quoted, as in 'name=\"5\"', where it looks like something else)",
        "list_type": "a list, as in [1,2]",
        "dict_type": "a group of keys",
        "too_short": f"a list of at least {context.get('min_length')} values",
        "too_long": f"a list of at most {context.get('max_length')} values",
        "greater_than_equal": f"{context.get('ge')} or more",
        "less_than_equal": f"{context.get('le')} or less",
    }
    return plain.get(error["type"]) or error["msg"].replace("Input should be ", "")


def _shown(value: Any) -> str:
    """A value as the command line would have it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
