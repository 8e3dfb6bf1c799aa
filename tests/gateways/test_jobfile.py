"""Job files: YAML as people write it, and errors with file, line and the nearest right name."""

from pathlib import Path

import pytest

from orchestrator.core.errors import BadInput
from orchestrator.gateways.jobfile import LoadedJob, discover, find, load

HEAD = "model: acme/shoes\nsource: { path: rows.csv }\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "x.yaml"
    path.write_text(text, "utf-8")
    return path


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def loaded(text: str, **more: object) -> LoadedJob:
    return load(write(Path.cwd(), text), **more)  # type: ignore[arg-type]


def refusal(text: str, **more: object) -> list[str]:
    with pytest.raises(BadInput) as caught:
        loaded(text, **more)
    return str(caught.value).splitlines()


def test_scalars_keep_their_text() -> None:
    """16:9, 007, no and dates are text; only what reads back the same is a number."""
    values = loaded(HEAD + "input:\n  a: 16:9\n  b: 007\n  c: no\n  d: 7\n  e: 25.00\n  f: 0x1F\n  g: 1_000\n  h: 2026-01-02\n"
                    "  i: true\n  j: ~\n  k: '7'\n  l: 0.5\n  m: 1e3\n  n:\n  o: -3\n  p: [1, x, 0o7]\n  q: yes\n  r: .inf\n"
                    "  s: !!str 7\n").job.input
    assert values == {"a": "16:9", "b": "007", "c": "no", "d": 7, "e": "25.00", "f": "0x1F", "g": "1_000", "h": "2026-01-02",
                      "i": True, "j": None, "k": "7", "l": 0.5, "m": "1e3", "n": None, "o": -3, "p": [1, "x", "0o7"], "q": "yes",
                      "r": ".inf", "s": "7"}
    assert type(values["d"]) is int


def test_what_is_loaded() -> None:
    """The job comes with name, folder, hash and the line of each entry."""
    found = loaded("\ufeff" + HEAD + "budget:\n  usd: 25.00\ninput:\n  prompt: 'a {{ b }}'\n")
    assert (found.name, found.folder) == ("x", Path.cwd().resolve())
    assert found.job.budget is not None
    assert str(found.job.budget.usd) == "25.00"
    assert found.places["input.prompt"] == "x.yaml:6"
    assert len(found.text_sha256) == 64


def test_all_errors_at_once_in_order() -> None:
    """Unknown fields, wrong types and values, each with line and nearest name."""
    lines = refusal("modle: a/b\ndeployment: x\nsource:\n  path: rows.csv\n  bad_row: skip\nlimits: { per_minute: fast }\n"
                    "output:\n  results: parket\nretry:\n  tolerate_failed: lots\n")
    assert [int(line.split(":")[1]) for line in lines] == [1, 2, 5, 6, 8, 10]
    text = "\n".join(lines)
    assert "x.yaml:1: unknown field 'modle' (did you mean 'model'?)" in text
    assert "x.yaml:5: unknown field 'bad_row' in source (did you mean 'bad_rows'?)" in text
    assert "x.yaml:6: limits.per_minute: 'fast' should be a valid integer" in text
    assert "x.yaml:8: output.results: 'parket' is not 'parquet', 'csv' or 'jsonl' (did you mean 'parquet'?)" in text
    assert "x.yaml:10: retry.tolerate_failed: write a share such as 5%" in text


@pytest.mark.parametrize(("text", "line"), [
    ("model: a/b\nsource: { path: r.csv }\n", None),
    ("source: { path: r.csv }\n", "x.yaml: say exactly one of model, deployment, cog, training: found none"),
    ("model: a/b\n", "x.yaml: source is missing"),
    ("model: a/b\nsource: {}\n", "x.yaml:2: source.path is missing"),
    ("model: a/b\nsource: rows.csv\n", "x.yaml:2: source must hold fields, such as source: { … }, not 'rows.csv'"),
    (HEAD + "input: [a]\n", "x.yaml:3: input must hold fields"),
    (HEAD + "budget: { usd: 25 dollars }\n", "x.yaml:3: budget.usd: '25 dollars' is not an amount in US dollars"),
    (HEAD + "limits: { cancel_after: soon }\n", "x.yaml:3: limits.cancel_after: 'soon' is not a duration"),
    (HEAD + "output: { name: '{{ nam }}' }\n", "x.yaml:3: output.name: unknown name 'nam'"),
    (HEAD + "input:\n  prompt: '{{ a'\n", "x.yaml:4: input 'prompt': unexpected end of template"),
    ("model: a/b:latest\nsource: { path: r.csv }\n", "x.yaml:1: model: Replicate has no version 'latest'"),
    ("deployment: flux\nsource: { path: r.csv }\n", "x.yaml:1: deployment: 'flux' does not name a deployment"),
    ("model: a/b\nsource: { path: }\n", "x.yaml:2: source.path: nothing should be text"),
    ("model: a/b\nsource: { path: [a] }\n", "x.yaml:2: source.path: a list should be text"),
])
def test_messages(text: str, line: str | None) -> None:
    """The essential words of each refusal."""
    if line is None:
        assert loaded(text).job.source.path == "r.csv"
        return
    (only,) = refusal(text)
    assert only.startswith(line)


@pytest.mark.parametrize("text", ["input:\n  prompt: {{ title }}\n", "input:\n  prompt: {{ title }}, studio\n",
                                  "input: { prompt: a {{ title }} }\n", "input:\n  prompt: {{ row['A b'] }}\n"])
def test_an_unquoted_template_says_put_quotes(text: str) -> None:
    """YAML takes an unquoted `{{` for a mapping; the message says what to do, and where."""
    line = 3 + text.count("\n  ")
    assert refusal(HEAD + text)[0] == f"x.yaml:{line}: " + 'a value with {{ … }} needs quotes around it: name: "{{ column }}"'


@pytest.mark.parametrize(("text", "line"), [
    ("", "x.yaml:1: the file is empty"),
    ("# only a comment\n", "x.yaml:1: the file is empty"),
    ("- a\n- b\n", "x.yaml:1: the file does not hold fields"),
    (HEAD + "model: c/d\n", "x.yaml:3: 'model' is here a second time; the first is in line 1"),
    (HEAD + "limits:\n\tper_minute: 6\n", "x.yaml:4: a tab cannot indent"),
    (HEAD + "input:\n  prompt: a: b\n", "x.yaml:4: a second `: ` on this line"),
    (HEAD + "input:\n  prompt: 'open\n", "x.yaml:4: not valid YAML"),
    (HEAD + "---\nmodel: e/f\n", "x.yaml:3: a second document"),
    (HEAD + "input: !python x\n", "x.yaml:3: the tag !python"),
    (HEAD + "input: &a { x: *a }\n", "x.yaml:3: "),
    (HEAD + "input: {" + "a: [" * 3000, "x.yaml:"),
])
def test_files_that_are_no_job(text: str, line: str) -> None:
    """What YAML cannot read is told with its line."""
    assert refusal(text)[0].startswith(line)


def test_a_bomb_of_references_is_refused() -> None:
    """References that multiply are bounded."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for left, right in zip("abcdef", "bcdefg", strict=True):
        bomb += f"{right}: &{right} [{', '.join([f'*{left}'] * 10)}]\n"
    assert "too much" in refusal(bomb)[0]


def test_unreadable_files(tmp_path: Path) -> None:
    """A missing file and one that is not UTF-8 are named."""
    with pytest.raises(BadInput, match=r"y\.yaml: there is no such file"):
        load(tmp_path / "y.yaml")
    (tmp_path / "y.yaml").write_bytes(b"model: \xff\n")
    with pytest.raises(BadInput, match="not UTF-8"):
        load(tmp_path / "y.yaml")


def test_set_goes_to_input() -> None:
    """A plain name sets an input; a dotted one a field of its section; values are read as YAML."""
    job = loaded(HEAD + "input:\n  seed: 1\n  model: x\n", overrides={
        "seed": "7", "ratio": "16:9", "prompt": "a: {{ b }}", "limits.per_minute": "60", "model": "y", "input.tags": "[a, 2]",
        "retry.tolerate_failed": "5%", "empty": ""}).job
    assert job.input == {"seed": 7, "model": "y", "ratio": "16:9", "prompt": "a: {{ b }}", "tags": ["a", 2], "empty": ""}
    assert job.limits.per_minute == 60
    assert job.retry.tolerate_failed == "5%"
    assert job.model == "acme/shoes"


def test_set_without_an_input_section() -> None:
    """`model=` changes the model where no input is called so; --source replaces the path."""
    job = loaded(HEAD, overrides={"model": "acme/boots"}, source="other.csv").job
    assert (job.model, job.source.path, job.input) == ("acme/boots", "other.csv", None)


def test_a_wrong_set_is_named() -> None:
    """An error in a value of --set is told with it, not with a line."""
    (value,) = refusal(HEAD, overrides={"limits.per_minute": "many"})
    assert value.startswith("--set limits.per_minute: limits.per_minute: 'many' should be a valid integer")
    (name,) = refusal(HEAD, overrides={"limits.per_minut": "1"})
    assert name.startswith("--set limits.per_minut: unknown field 'per_minut' in limits (did you mean 'per_minute'?)")
    (section,) = refusal(HEAD + "limits: 3\n", overrides={"limits.per_minute": "1"})
    assert section == "--set limits.per_minute: 'limits' is no mapping in the job file"


def test_finding(tmp_path: Path) -> None:
    """A path, or a name in the nearest jobs/ at or above; else the nearest name."""
    (tmp_path / "jobs" / "deep").mkdir(parents=True)
    for name in ("shots.yaml", "texts.yml", "note.txt"):
        (tmp_path / "jobs" / name).write_text(HEAD)
    assert [path.name for path in discover(tmp_path / "jobs" / "deep")] == ["shots.yaml", "texts.yml"]
    assert find("shots", cwd=tmp_path / "jobs" / "deep").name == "shots.yaml"
    assert find("jobs/texts.yml", cwd=tmp_path).name == "texts.yml"
    with pytest.raises(BadInput, match=r"no job 'shot' \(did you mean 'shots'\?\).*there are shots, texts"):
        find("shot", cwd=tmp_path)
    with pytest.raises(BadInput, match=r"no job 'jobs/shots\.yml' \(did you mean 'shots'"):
        find("jobs/shots.yml", cwd=tmp_path)


@pytest.mark.parametrize("name", ["demo", "parti-images", "reviews-llm"])
def test_the_examples_load(name: str) -> None:
    """Every job that is shipped is one that this version runs, with its source beside it."""
    example = load(find(name, cwd=Path(__file__).parent))
    assert example.job.unsupported() == []
    assert (example.folder / example.job.source.path).is_file()
    assert example.job.budget is not None
