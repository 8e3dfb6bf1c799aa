"""Job files: YAML 1.2 with the line of every entry, so that whatever is wrong can be said with its place."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator.core.errors import BadInput
from orchestrator.core.job import Job
from orchestrator.core.nearest import did_you_mean, listed
from orchestrator.core.template import is_template, parse
from orchestrator.gateways.yaml_places import Document, YamlProblem, read_document, read_scalar

SUFFIXES = (".yaml", ".yml")
LARGEST_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class LoadedJob:
    """A job with where it came from. `places` leads from `input.prompt` to `jobs/x.yaml:12`, for later messages."""

    job: Job
    name: str
    path: Path
    folder: Path
    text_sha256: str
    places: Mapping[str, str]


def load(path: Path, *, overrides: Mapping[str, str] | None = None, source: str | None = None) -> LoadedJob:
    """Read and check one job file.

    `overrides` are `--set name=value`: a plain name sets an entry of `input` (one that is there, or `input` is); a name
    that begins with a section, such as `limits.per_minute` or `retry.attempts`, sets that field; `model=…` sets the model.
    Values are read as YAML values. `source` replaces `source.path`. Raises BadInput, one line per problem, each with its
    place.
    """
    shown = _shown(path)
    text = _text(path, shown=shown)
    try:
        document = read_document(text)
    except YamlProblem as problem:
        raise BadInput("\n".join(f"{shown}:{line}: {sentence}" for line, sentence in problem.problems)) from problem
    places = {key: f"{shown}:{line}" for key, line in document.lines.items()}
    values = document.values
    _override(values, overrides or {}, places=places)
    if source is not None:
        _set(values, ["source", "path"], source, places=places, said="--source")
    job = _validated(values, places=places, document=document, shown=shown)
    return LoadedJob(job, path.name.removesuffix(path.suffix), path, path.resolve().parent,
                     hashlib.sha256(text.encode()).hexdigest(), places)


def find(name_or_path: str | Path, *, cwd: Path) -> Path:
    """The job file of this path, or of this name in the folder `jobs/` of `cwd` or above. Raises BadInput with the nearest."""
    text = str(name_or_path)
    path = cwd / Path(text).expanduser()
    if path.is_file():
        return path
    if path.suffix not in SUFFIXES and "/" not in text and "\\" not in text:
        for found in discover(cwd):
            if found.stem == text:
                return found
    there = discover(cwd)
    near = get_close_matches(path.stem, [found.stem for found in there], n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    known = f"there are {listed(found.stem for found in there)}" if there else f"there is no folder jobs/ at or above {cwd}"
    raise BadInput(f"no job {text!r}{hint}: neither a file nor a name in jobs/; {known}")


def discover(cwd: Path) -> list[Path]:
    """The job files of the nearest folder `jobs/` at or above `cwd`, sorted by name; none where there is no such folder."""
    start = cwd.resolve()
    for folder in (start, *start.parents):
        if (folder / "jobs").is_dir():
            return sorted(path for path in (folder / "jobs").iterdir() if path.suffix in SUFFIXES and path.is_file())
    return []


def _shown(path: Path) -> str:
    """The path as messages show it: relative to the working folder where it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def _text(path: Path, *, shown: str) -> str:
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise BadInput(f"{shown}: more than {LARGEST_BYTES:,} bytes; is this a job file?")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise BadInput(f"{shown}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{shown}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise BadInput(f"{shown}: cannot be read: {error.strerror}") from error


def _override(values: dict[str, Any], overrides: Mapping[str, str], *, places: dict[str, str]) -> None:
    for name, text in overrides.items():
        said = f"--set {name}"
        try:
            value = read_scalar(text)
        except YamlProblem as problem:
            raise BadInput(f"{said}: {problem.problems[0][1]}") from problem
        head, _, rest = name.partition(".")
        inputs = values.get("input")
        is_input = isinstance(inputs, dict) and name in inputs
        if not is_input and (head == "input" or _is_section(head)) and rest:
            keys = [head, rest] if head == "input" else name.split(".")
        elif not is_input and name in ("model", "deployment", "cog", "training", "destination", "duplicates"):
            keys = [name]
        else:
            keys = ["input", name]
        _set(values, keys, value, places=places, said=said)


def _is_section(name: str) -> bool:
    field = Job.model_fields.get(name)
    return field is not None and _part_of(field.annotation) is not None


def _set(values: dict[str, Any], keys: Sequence[str], value: Any, *, places: dict[str, str], said: str) -> None:
    node = values
    for key in keys[:-1]:
        below = node.get(key)
        if below is None:
            below = node[key] = {}
        if not isinstance(below, dict):
            raise BadInput(f"{said}: {key!r} is no mapping in the job file")
        node = below
    node[keys[-1]] = value
    places[".".join(keys)] = said


def _validated(values: dict[str, Any], *, places: Mapping[str, str], document: Document, shown: str) -> Job:
    problems = [f"{_place(key, places, shown)}: {sentence}" for key, sentence in _template_problems(values)]
    job = None
    try:
        job = Job.model_validate(values)
    except ValidationError as error:
        problems += [_sentence(item, places=places, shown=shown) for item in error.errors()]
    if job is None or problems:
        order = dict(document.by_place(shown))
        problems.sort(key=lambda text: order.get(text.partition(": ")[0], 0))
        raise BadInput("\n".join(dict.fromkeys(problems)))
    return job


def _template_problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Wrong template syntax is known before the source is: names are checked once its columns are."""
    inputs = values.get("input")
    for name, value in inputs.items() if isinstance(inputs, dict) else ():
        for text in _texts(value):
            if is_template(text) or "}}" in text:
                try:
                    parse(text, where="")
                except BadInput as error:
                    yield f"input.{name}", f"input {name!r}: {str(error).removeprefix(': ')}"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for member in value.values():
            yield from _texts(member)
    elif isinstance(value, list):
        for member in value:
            yield from _texts(member)


def _place(key: str, places: Mapping[str, str], shown: str) -> str:
    """The place of a field, or of what holds it."""
    while key:
        if key in places:
            return places[key]
        key = key.rpartition(".")[0]
    return shown


def _sentence(error: Any, *, places: Mapping[str, str], shown: str) -> str:
    """One problem that pydantic found, with place and nearest right name."""
    loc = [str(part) for part in error["loc"]]
    model, known = _walk(loc)
    name = ".".join(known)
    place = _place(name, places, shown)
    kind, field = error["type"], known[-1] if known else ""
    if kind == "extra_forbidden":
        parent = f" in {'.'.join(known[:-1])}" if known[:-1] else ""
        return f"{place}: unknown field {field!r}{parent}{did_you_mean(field, model)}; there are {listed(model)}"
    if kind == "missing":
        return f"{place}: {name} is missing"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{place}: {name or 'the file'} must hold fields, such as {field or 'model'}: {{ … }}, not {error['input']!r}"
    words = error["ctx"]["error"] if kind == "value_error" else _plain(error)
    text = str(words)
    return f"{place}: {text}" if not name or text.startswith(name) else f"{place}: {name}: {text}"


def _plain(error: Any) -> str:
    given = error["input"]
    words = {dict: "a mapping", list: "a list", type(None): "nothing"}
    shown = words.get(type(given), repr(given))
    message = str(error["msg"]).removeprefix("Input should be ").replace("a valid string", "text")
    if error["type"] == "literal_error":
        near = did_you_mean(str(given), [part.strip("' ") for part in message.replace(" or ", ",").split(",")])
        return f"{shown} is not {message}{near}"
    return f"{shown} should be {message}" if message != error["msg"] else f"{shown}: {message}"


def _walk(loc: Sequence[str]) -> tuple[list[str], list[str]]:
    """Field names at the place of an error, and the place itself without pydantic's own additions (union members)."""
    model: type[BaseModel] | None = Job
    names: list[str] = []
    allowed: list[str] = list(Job.model_fields)
    for part in loc:
        if model is None:
            break
        allowed = list(model.model_fields)
        names.append(part)
        field = model.model_fields.get(part)
        model = None if field is None else _part_of(field.annotation)
    return allowed, names


def _part_of(annotation: Any) -> type[BaseModel] | None:
    """The part of a job that a field holds, optional or not."""
    for kind in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
