"""From a row of the source to the input of a prediction: planned once per job, built and checked once per row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.canonical import canonical
from orchestrator.core.cells import Convert, Unfit, converter
from orchestrator.core.errors import BadInput, RowProblem
from orchestrator.core.nearest import did_you_mean, listed
from orchestrator.core.openapi import (
    FieldSpec,
    FileRef,
    InputSchema,
    OutputShape,
    shape_of,
)
from orchestrator.core.runkey import hash_text
from orchestrator.core.template import Render, RowTemplateError, Template, is_template

__all__ = ["FileRef", "InputPlan", "InputSchema", "OutputShape", "canonical", "input_hash", "plan_inputs", "shape_of"]

SHOWN_CHARACTERS = 60


def input_hash(value: Mapping[str, Any]) -> str:
    """The hash of an input's canonical JSON, 64 hex digits: equal for equal inputs, however they are written."""
    return hash_text(canonical(value))


@dataclass(frozen=True, slots=True)
class _Step:
    """How one input gets its value from a row."""

    name: str
    label: str  # as messages call it
    render: Render
    convert: Convert
    required: bool
    secret: bool


@dataclass(frozen=True, slots=True)
class InputPlan:
    """A mapping that fits its source and its model. `constants` are alike for every row."""

    constants: Mapping[str, Any]
    _steps: tuple[_Step, ...] = field(repr=False)

    @property
    def fed(self) -> tuple[str, ...]:
        """Names of the inputs that get a value, in the order of the mapping, constants first."""
        return (*self.constants, *self.varying)

    @property
    def varying(self) -> tuple[str, ...]:
        """Names of the inputs that rows may give different values."""
        return tuple(step.name for step in self._steps)

    def build(self, cells: Mapping[str, Any], *, index: int) -> tuple[dict[str, Any] | None, list[RowProblem]]:
        """The input of one row, or None and everything that is wrong with the row (`line` is left to the caller).

        An empty cell leaves its input out; the model's default applies.
        """
        value = dict(self.constants)
        problems: list[RowProblem] = []
        for step in self._steps:
            raw = None
            try:
                raw = step.render(cells, index)
                if raw is None or raw == "":
                    if step.required:
                        problems.append(RowProblem(index, None, step.label, None, "is required but the cell is empty"))
                    continue
                value[step.name] = step.convert(raw)
            except (Unfit, RowTemplateError) as error:
                shown = None if step.secret or raw is None else _shown(raw)
                problems.append(RowProblem(index, None, step.label, shown, str(error)))
        return (None if problems else value), problems


def _shown(value: Any) -> str:
    try:
        text = str(value)
    except ValueError:  # an integer too long for Python to print
        text = type(value).__name__
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def plan_inputs(job_input: Mapping[str, Any] | None, *, columns: Sequence[str], schema: InputSchema,
                row_id_column: str | None = None, places: Mapping[str, str] | None = None) -> InputPlan:
    """Compile a job's `input` against its source and its model; without one, each column feeds the input of its name.

    `places` says where an input stands in the job file (`jobs/x.yaml:12`), for messages. Raises BadInput with a line for
    everything that is wrong.
    """
    problems: list[str] = []
    if row_id_column is not None and row_id_column not in columns:
        problems.append(f"{(places or {}).get('source.id', 'source.id')}: the source has no column {row_id_column!r}"
                        f"{did_you_mean(row_id_column, columns)}; its columns: {listed(columns)}")
    if job_input is None:
        plan = _by_name(columns, schema=schema, problems=problems)
    else:
        planner = _Planner(schema, columns, row_id_column, places or {}, problems)
        plan = planner.plan(job_input)
    if problems:
        raise BadInput("\n".join(problems))
    return plan


def _by_name(columns: Sequence[str], *, schema: InputSchema, problems: list[str]) -> InputPlan:
    """Columns that are no inputs are carried along."""
    fed = [name for name in schema.fields if name in columns]
    missing = [name for name in schema.required if name not in fed]
    if missing or not fed:
        lack = f"no column for the required {listed(missing)}" if missing else "no column has the name of an input"
        problems.append(
            f"the job has no `input`, so each column feeds the input of its name: {lack}.\n"
            f"  columns: {listed(columns)}\n  inputs: {listed(schema.fields)}\n"
            "Add to the job, for instance,\n"
            f"  input: {{ {(missing or list(schema.fields) or ['prompt'])[0]}: \"{_example(columns)}\" }}")
    return InputPlan({}, tuple(_column_step(schema.fields[name]) for name in fed))


def _example(columns: Sequence[str]) -> str:
    """The first column as a template."""
    name = columns[0] if columns else "column"
    return f"{{{{ {name} }}}}" if name.isidentifier() else f"{{{{ row[{name!r}] }}}}"


def _column_step(spec: FieldSpec) -> _Step:
    name = spec.name
    return _Step(name, f"input {name!r}", lambda cells, index: cells.get(name), converter(spec), spec.required, spec.is_secret)


@dataclass(frozen=True, slots=True)
class _Planner:
    """One compilation of a mapping, collecting what is wrong."""

    schema: InputSchema
    columns: Sequence[str]
    id_column: str | None
    places: Mapping[str, str]
    problems: list[str]

    def plan(self, job_input: Mapping[str, Any]) -> InputPlan:
        constants: dict[str, Any] = {}
        steps: list[_Step] = []
        for name, value in job_input.items():
            spec = self.schema.fields.get(name)
            if spec is None:
                self._unknown(name)
            elif value is not None:
                self._add(spec, value, constants=constants, steps=steps)
        given = {name for name, value in job_input.items() if value is not None}
        for name in self.schema.required:
            if name not in given:
                self.problems.append(f"{self.places.get('input', 'input')}: the model requires {name!r}; add a line for it, "
                                     f"such as {name}: \"{_example(self.columns)}\"")
        return InputPlan(constants, tuple(steps))

    def _where(self, name: str) -> str:
        place = self.places.get(f"input.{name}")
        return f"{place}: input {name!r}" if place else f"input {name!r}"

    def _unknown(self, name: str) -> None:
        place = self.places.get(f"input.{name}")
        self.problems.append((f"{place}: " if place else "") + f"unknown input {name!r}{did_you_mean(name, self.schema.fields)}; "
                             f"the model takes {listed(self.schema.fields)}")

    def _add(self, spec: FieldSpec, value: Any, *, constants: dict[str, Any], steps: list[_Step]) -> None:
        where = self._where(spec.name)
        try:
            compiled = self._compiled(value, where=where)
            convert = converter(spec)
            if isinstance(compiled, _Constant):
                if compiled.value == "" and not spec.required:
                    return
                constants[spec.name] = convert(compiled.value)
                return
            label = f"input {spec.name!r}"
            if compiled.column is not None and compiled.column != spec.name:
                label += f" (column {compiled.column!r})"
            steps.append(_Step(spec.name, label, compiled.render, convert, spec.required, spec.is_secret))
        except Unfit as error:
            shown = "" if spec.is_secret else f", value {_shown(value)!r}"
            self.problems.append(f"{where}{shown}: {error}")
        except BadInput as error:
            self.problems.append(str(error))

    def _compiled(self, value: Any, *, where: str) -> "_Constant | _Compiled":
        """A value of the mapping: text, or a list or object with texts inside."""
        if isinstance(value, str) and is_template(value):
            template = Template(value, columns=self.columns, id_column=self.id_column, where=where)
            return _Compiled(template.for_row, template.column)
        if isinstance(value, Mapping):
            parts = {str(key): self._compiled(member, where=where) for key, member in value.items()}
            if any(isinstance(part, _Compiled) for part in parts.values()):
                return _Compiled(_object_of(parts), None)
        if isinstance(value, list | tuple):
            members = [self._compiled(member, where=where) for member in value]
            if any(isinstance(member, _Compiled) for member in members):
                return _Compiled(_list_of(members), None)
        return _Constant(value)


@dataclass(frozen=True, slots=True)
class _Constant:
    value: Any

    def render(self, cells: Mapping[str, Any], index: int) -> Any:
        return self.value


@dataclass(frozen=True, slots=True)
class _Compiled:
    render: Render
    column: str | None


def _object_of(parts: Mapping[str, _Constant | _Compiled]) -> Render:
    def render(cells: Mapping[str, Any], index: int) -> dict[str, Any]:
        values = {name: part.render(cells, index) for name, part in parts.items()}
        return {name: value for name, value in values.items() if value is not None and value != ""}

    return render


def _list_of(members: Sequence[_Constant | _Compiled]) -> Render:
    """Empty cells leave their item out; a list of which nothing is left counts as an empty cell."""

    def render(cells: Mapping[str, Any], index: int) -> list[Any] | None:
        values = [member.render(cells, index) for member in members]
        return [value for value in values if value is not None and value != ""] or None

    return render
