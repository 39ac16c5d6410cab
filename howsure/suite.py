"""Suites: TOML files that say which grid to run. Errors in them are reported with file, line and key."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .corruptions import CORRUPTIONS
from .data import located
from .errors import UserError, described, unknown, why
from .losses import LOSSES
from .method import Method, misdeclared
from .plugins import METHODS
from .sources import SCHEMES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Protocol = Literal["none", "same-shift", "leave-one-out", "pseudo-unknown", "synthetic"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
COLUMNS = ("method", "supervision", "mean")
RESERVED = ("id", "train", "test", "val", "synthetic", "pseudo-unknown", *COLUMNS)
"""Names that no shift can have: those of other splits, and of columns in the tables."""
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InDistribution(_Table):
    """Where the images of known classes come from: one data set, or one per split."""

    train: str
    test: str
    val: str | None = None


class BackboneSpec(_Table):
    """A network: what builds it, its weights, and its input transform where that differs from the network's own."""

    use: str
    name: Annotated[str, Field(pattern=NAME)]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    checkpoint: str | None = None
    members: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_from_use(cls, values: Any) -> Any:
        if isinstance(values, dict) and "use" in values and "name" not in values:
            return {**values, "name": _derived(str(values["use"]))}
        return values


def _derived(text: str) -> str:
    """A valid name made from a text; empty if the text has no letter or digit."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).strip("-").lstrip("_.+-")


def short(data: str) -> str:
    """The stem of a path, else the name of the data set: `npz:some/where/dtd.npz` gives `dtd`."""
    scheme, _, path = data.partition(":")
    return Path(path).stem if scheme in SCHEMES else data


class ShiftSpec(_Table):
    """A set of shifted images."""

    data: str
    name: Annotated[str, Field(pattern=NAME)]
    group: Annotated[str, Field(min_length=1)] = "far"
    task: Literal["ood", "corruption"] = "ood"

    @model_validator(mode="before")
    @classmethod
    def _name_from_data(cls, values: Any) -> Any:
        if isinstance(values, dict) and "data" in values and "name" not in values:
            return {**values, "name": _derived(short(str(values["data"])))}
        return values

    @field_validator("group")
    @classmethod
    def _free(cls, group: str) -> str:
        if not re.fullmatch(r"\w[\w.+ -]*", group):
            raise ValueError(f"a group cannot be called '{group}'; use letters, digits, spaces and _ . + -")
        if group in ("id", "corruption", "misclassification", "errors", "note", *COLUMNS):
            raise ValueError(
                f"a group cannot be called '{group}', a name that tables and plots reserve; give it another name"
            )
        return group


class CorruptionSpec(_Table):
    """Corruptions made on the fly from the in-distribution test images.

    With `images`, only that many are corrupted at each severity, different ones as far as they last: with a fifth of
    the test images and five severities, each type uses every image once.
    """

    types: Annotated[tuple[str, ...], Field(min_length=1)]
    images: Annotated[int, Field(ge=10)] | None = None
    severities: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1)] = (1, 2, 3, 4, 5)

    @field_validator("types", mode="before")
    @classmethod
    def _all(cls, types: Any) -> Any:
        return tuple(CORRUPTIONS) if types == "all" else (types,) if isinstance(types, str) else types

    @field_validator("types", mode="after")
    @classmethod
    def _known(cls, types: tuple[str, ...]) -> tuple[str, ...]:
        for name in types:
            if name not in CORRUPTIONS:
                raise ValueError(str(unknown("corruption", name, CORRUPTIONS)))
        if len(set(types)) < len(types):
            raise ValueError(f"a corruption is listed twice: {', '.join(types)}")
        return types

    @field_validator("severities", mode="after")
    @classmethod
    def _each_once(cls, severities: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(severities))


class Suite(_Table):
    """A grid of backbones, shifts, methods and protocols; `base` is the folder that its relative paths start from."""

    name: str
    base: Path
    id: InDistribution
    methods: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)
    protocols: Annotated[tuple[Protocol, ...], Field(min_length=1)] | None = None
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)] = (0,)
    max_images: Annotated[int, Field(ge=10)] | None = None
    backbone: Annotated[tuple[BackboneSpec, ...], Field(min_length=1)]
    shift: tuple[ShiftSpec, ...] = ()
    corruptions: CorruptionSpec | None = None
    method: dict[str, dict[str, Any]] = {}

    @field_validator("id", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return {"train": value, "test": value, "val": value} if isinstance(value, str) else value

    @field_validator("seeds", "protocols", mode="after")
    @classmethod
    def _each_once(cls, values: Any) -> Any:
        return values and tuple(dict.fromkeys(values))

    @model_validator(mode="after")
    def _variants_run(self) -> Suite:
        for name, values in self.method.items():
            if "use" in values and not any(fnmatchcase(name, pattern) for pattern in self.methods):
                raise ValueError(f"the variant '{name}' is not in `methods`; add it there")
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Suite:
        for kind, names in (("backbone", [b.name for b in self.backbone]), ("shift", [s.name for s in self.shift])):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"two {kind}s are called '{twice[0]}'; give one of them another name")
        for name in self.method:
            if not re.fullmatch(NAME, name):
                raise ValueError(f"a method cannot be called '{name}'; use letters, digits and _ . + -")
        made = self.corruptions.types if self.corruptions else ()
        for name in (s.name for s in self.shift):
            if name in (*RESERVED, *made):
                raise ValueError(f"a shift cannot be called '{name}', which is taken; give it another `name`")
        return self

    def checkpoint(self, spec: BackboneSpec) -> str | None:
        """The path of a backbone's checkpoint."""
        return str(located(spec.checkpoint, self.base).absolute()) if spec.checkpoint else None

    def chosen_protocols(self) -> tuple[Protocol, ...]:
        """The protocols asked for; by default `none`, `same-shift` and `leave-one-out`, as far as there are shifts."""
        if self.protocols is not None:
            return self.protocols
        types = len(self.shift) + (len(self.corruptions.types) if self.corruptions else 0)
        wanted = {"none"} | ({"same-shift"} if types else set()) | ({"leave-one-out"} if types > 1 else set())
        return tuple(p for p in PROTOCOLS if p in wanted)

    def chosen_methods(self) -> dict[str, Method]:
        """The methods that the globs match, variants included, by name and with the suite's hyper-parameters."""
        variants = [name for name, values in self.method.items() if "use" in values]
        names: list[str] = []
        for pattern in self.methods:
            found = [n for n in (*METHODS, *variants) if fnmatchcase(n, pattern)]
            names += [n for n in found or [pattern] if n not in names]
        for name in self.method:
            make_method(name, self.method[name])  # raises for a table with mistakes, even if no glob matches it
        return {name: make_method(name, self.method.get(name, {})) for name in names}


def make_method(name: str, values: Mapping[str, Any]) -> Method:
    """A method with the given hyper-parameters; `use` among `values` names it if it is a variant called otherwise.

    A loss is a table that names it in `kind`: `{ kind = "confound", hot = 2 }`.

    Raises:
        UserError: there is no such method, hyper-parameter or loss, a value is wrong, or the class is misdeclared.
    """
    used = str(values.get("use", name))
    cls = METHODS[used]
    if not is_dataclass(cls):
        raise UserError(f"method {used}: {cls.__name__} is not a dataclass; decorate it with @dataclass(frozen=True)")
    parameters = {key: value for key, value in values.items() if key != "use"}
    known = [f.name for f in fields(cls)]
    for key in parameters:
        if key not in known:
            raise unknown(f"hyper-parameter of {used}", key, known)
    values = {key: _value(value) for key, value in parameters.items()}
    try:
        method = cls(**values).settled(values)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"method {used}: {why(error)}") from error
    except Exception as error:
        raise UserError(f"method {used}: {described(error)}") from error
    try:
        fault = misdeclared(method)
    except Exception:  # its `needs` raises: its cells will fail, and no others
        return method
    if fault:
        raise UserError(f"method {used}: {fault}")
    return method


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, dict):
        return value
    kind = str(value.get("kind"))
    if kind not in LOSSES:
        raise unknown("loss", kind, LOSSES)
    known = [f.name for f in fields(LOSSES[kind])]
    for key in value:
        if key not in (*known, "kind"):
            raise unknown(f"setting of the loss {kind}", key, known)
    return LOSSES[kind](**{key: v for key, v in value.items() if key != "kind"})


def own_suites() -> Path:
    """The folder of the suites that come with the package."""
    return Path(str(resources.files("howsure.benchmarks") / "suites")).resolve()


def suite_names() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(file.stem for file in own_suites().glob("*.toml"))


def load_suite(name: str) -> Suite:
    """A suite by its name or by the path of its TOML file.

    Raises:
        UserError: there is no such suite, or its file is malformed; the message gives file, line and key.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        if name not in suite_names():
            if path.suffix == ".toml" or "/" in name:
                raise UserError(f"{name}: no such suite file; give the path of a TOML file or a name")
            raise unknown("suite", name, suite_names())
        path = own_suites() / f"{name}.toml"
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({why(error)})") from error
    for reserved in ("name", "base"):
        if reserved in values:
            raise UserError(f"{path}{_line(text, [reserved])}: unknown key '{reserved}'; remove it")
    try:
        return Suite(**values, name=path.stem, base=path.resolve().parent)
    except ValidationError as error:
        raise UserError(_explain(path, text, error)) from error


def _explain(path: Path, text: str, error: ValidationError) -> str:
    """The first problem in one line: file, line, key, what is wrong, and the nearest known key."""
    problem = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    where = [str(part) for part in problem["loc"]]
    place = f"{path}{_line(text, where)}"
    key = ".".join(where)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(where[:-1])
        near = get_close_matches(where[-1], known, n=1)
        return f"{place}: unknown key '{key}'; {'did you mean ' + near[0] if near else 'known: ' + ', '.join(known)}"
    return f"{place}: {key + ': ' if key else ''}{_in_words(problem, key)}"


WORDS = {
    "tuple_type": "input should be a list",
    "model_type": "input should be a table",
    "dict_type": "input should be a table",
}


def _in_words(problem: Any, key: str) -> str:
    """What is wrong with a value, in the words of TOML."""
    kind, given = problem["type"], problem["input"]
    if kind == "tuple_type" and key in ("backbone", "shift") and isinstance(given, dict):
        return f"write [[{key}]], with double brackets: there may be several"
    if kind == "string_pattern_mismatch":
        return f"'{given}' cannot be a name; give a `name` of letters, digits and _ . + -, first a letter or digit"
    message = WORDS.get(kind) or problem["msg"].removeprefix("Value error, ")
    message = message.replace("Tuple", "List").replace(" after validation", "")
    return message[0].lower() + message[1:]


def _known_keys(table: list[str]) -> list[str]:
    models: dict[str, type[BaseModel]] = {
        "id": InDistribution, "backbone": BackboneSpec, "shift": ShiftSpec, "corruptions": CorruptionSpec,
    }  # fmt: skip
    model = models.get(table[0], Suite) if table else Suite
    return sorted(set(model.model_fields) - ({"name", "base"} if model is Suite else set()))


def _line(text: str, where: list[str]) -> str:
    """`:` and the line number of a key in a TOML text, or of its table if the key is not there; empty without either.

    `where` is the key's path, with the indices of array tables.
    """
    lines = text.splitlines()
    start, headers, keys = 0, [], [part for part in where if not part.isdigit()]
    if len(keys) > 1 or any(part.isdigit() for part in where[1:2]):
        nth = int(where[1]) if len(where) > 1 and where[1].isdigit() else 0
        headers = [i for i, line in enumerate(lines) if re.match(rf"\s*\[\[?\s*{re.escape(keys[0])}[\s.\]]", line)]
        start = headers[min(nth, len(headers) - 1)] if headers else 0
        later = [i for i in range(start + 1, len(lines)) if headers and re.match(r"\s*\[\[?\w", lines[i])]
        lines = lines[: later[0]] if later else lines
    last = re.escape(keys[-1]) if keys else ""
    found = [
        i for i in range(start, len(lines)) if last and re.search(rf"(^|[\s{{,.\[\"]){last}[\s\"\]]*(=|$|\])", lines[i])
    ]
    return f":{(found or [start])[0] + 1}" if found or headers else ""
