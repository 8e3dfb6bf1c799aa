"""The command `orchestrator`: arguments in, one flow call, exit code out."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from orchestrator.apps.cli.ending import Ending, Exit
from orchestrator.apps.cli.speech import last_words, trouble
from orchestrator.core.errors import BadInput, OrchestratorError, ProviderRefusal, TokenRefused, Unreachable

app = typer.Typer(
    name="orchestrator", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="A file of inputs in, verified files and a ledger out: batches of Replicate predictions, each bought once.",
    epilog="Start with: orchestrator demo. The same `run` command again resumes; exit codes are in the README.")

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else there.")]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="A job file, or its name in jobs/.")]
BatchName = Annotated[str, typer.Argument(metavar="BATCH", help="A batch id, or the beginning of one.")]
Source = Annotated[str | None, typer.Option(help="Another source than the job's.")]
Output = Annotated[str | None, typer.Option(help="Another output folder than the job's.")]
RunKey = Annotated[str | None, typer.Option(help="What makes it the same batch; default: a hash.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Start so many rows at most; a later run goes on.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="A new batch, even if one exists.")]
Change = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A model input, or section.field.")]


def main() -> None:
    """Run a command and leave with its exit code."""
    app()


def act(work: Callable[[], Awaitable[Ending]], *, as_json: bool) -> None:
    """Do one command's work on a fresh loop and leave with its code."""
    try:
        ending = _runner(work)
    except OrchestratorError as error:
        trouble(error, as_json=as_json)
        raise typer.Exit(code_of(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(int(Exit.INTERRUPTED)) from None
    last_words(ending, as_json=as_json)
    raise typer.Exit(int(ending.code))


def _runner(work: Callable[[], Awaitable[Ending]]) -> Ending:
    async def awaited() -> Ending:
        return await work()

    return asyncio.run(awaited())


def code_of(error: OrchestratorError) -> int:
    """The exit code that an error means."""
    if isinstance(error, BadInput):
        return int(Exit.BAD_INPUT)
    return int(Exit.UNREACHABLE if isinstance(error, Unreachable | TokenRefused | ProviderRefusal) else Exit.FAILED_ROWS)


def seconds(text: str) -> float:
    """`15m`, `90s`, `1h30m` or plain seconds."""
    from orchestrator.core.job import duration_s

    try:
        return duration_s(text)
    except ValueError as error:
        raise BadInput(f"--patience: {error}") from error


def changes(pairs: list[str] | None) -> dict[str, str]:
    """`--set name=value` pairs as a mapping."""
    found = {}
    for pair in pairs or []:
        name, sign, value = pair.partition("=")
        if not sign or not name.strip():
            raise BadInput(f"--set {pair!r}: write it as --set name=value")
        found[name.strip()] = value
    return found


@app.command()
def run(
    job: JobName,
    source: Source = None,
    output: Output = None,
    run_key: RunKey = None,
    limit: Limit = None,
    change: Change = None,
    fresh: Fresh = False,
    detach: Annotated[bool, typer.Option("--detach", help="Leave it to the roles that are at work here (`up`).")] = False,
    patience: Annotated[str, typer.Option(help="How long to wait for what is away, e.g. 15m.")] = "15m",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Consent to the cost.")] = False,
    json: Json = False,
) -> None:
    """Run a batch to its end. The same command again resumes it."""
    from orchestrator.apps.cli import run as command
    from orchestrator.apps.cli.options import RunOptions

    act(lambda: command.run(RunOptions(
        job=job, source=source, output=output, run_key=run_key, limit=limit, changes=changes(change), fresh=fresh, detach=detach,
        patience_s=seconds(patience), yes=yes)), as_json=json)


@app.command()
def plan(
    job: JobName,
    source: Source = None,
    output: Output = None,
    run_key: RunKey = None,
    limit: Limit = None,
    change: Change = None,
    fresh: Fresh = False,
    json: Json = False,
) -> None:
    """The same as `run`, spending nothing: every row checked, the batch priced and timed."""
    from orchestrator.apps.cli import planning
    from orchestrator.apps.cli.options import RunOptions

    act(lambda: planning.plan(RunOptions(job=job, source=source, output=output, run_key=run_key, limit=limit,
                                         changes=changes(change), fresh=fresh)), as_json=json)


@app.command()
def status(batch: Annotated[str | None, typer.Argument(metavar="[BATCH]")] = None, json: Json = False) -> None:
    """How the batches stand, or one of them."""
    from orchestrator.apps.cli import look

    act(lambda: look.status(batch), as_json=json)


@app.command()
def watch(batch: BatchName, json: Json = False) -> None:
    """Follow a running batch to its end."""
    from orchestrator.apps.cli import look

    act(lambda: look.watch(batch), as_json=json)


@app.command()
def items(batch: BatchName, state: Annotated[str | None, typer.Option(help="Only items in this state.")] = None,
          limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100, json: Json = False) -> None:
    """The rows of a batch: state, prediction, error, cost."""
    from orchestrator.apps.cli import look

    act(lambda: look.items(batch, state=state, limit=limit), as_json=json)


@app.command()
def costs(
    batch: Annotated[str | None, typer.Argument(metavar="[BATCH]")] = None,
    by: Annotated[str | None, typer.Option(
        help="batch, job, model, day (UTC), or column:NAME of the batch's source.", show_default="batch")] = None,
    to: Annotated[str | None, typer.Option(help="A .parquet or .csv file.")] = None,
    invoice: Annotated[str | None, typer.Option(
        metavar="FILE", help="Lay this invoice (.csv) beside the ledger instead. Exit 1: they differ.")] = None,
    columns: Annotated[list[str] | None, typer.Option(
        metavar="NAME=COLUMN,...", help="Its columns: model, prediction, amount, day, quantity, unit_price, currency.")] = None,
    first: Annotated[str | None, typer.Option("--from", metavar="DAY", help="Of an invoice: from this day (UTC).")] = None,
    last: Annotated[str | None, typer.Option("--until", metavar="DAY", help="To this day, included.")] = None,
    account: Annotated[str | None, typer.Option(help="Whose invoice it is, where several have bought here.")] = None,
    json: Json = False,
) -> None:
    """What was spent: in all, and on what failed, was canceled, or was bought beyond need."""
    if invoice is None:
        from orchestrator.apps.cli import costs as command

        of_invoice = bool(columns or first or last or account)
        act(lambda: command.costs(batch, by=by or "batch", to=to, of_invoice=of_invoice), as_json=json)
    else:
        from orchestrator.apps.cli import invoice as beside

        options = beside.InvoiceOptions(invoice, tuple(columns or ()), first, last, account, to, is_whole=not (batch or by))
        act(lambda: beside.invoice(options), as_json=json)


@app.command()
def export(batch: BatchName, to: Annotated[str | None, typer.Option(help="A .parquet, .csv or .jsonl file.")] = None,
           json: Json = False) -> None:
    """Write the results as they stand now."""
    from orchestrator.apps.cli import steer

    act(lambda: steer.export(batch, to=to), as_json=json)


@app.command()
def verify(batch: BatchName,
           local: Annotated[bool, typer.Option("--local", help="Files and ledger only; ask the provider nothing.")] = False,
           fetch: Annotated[bool, typer.Option("--fetch", help="Fetch missing files again, if still kept there.")] = False,
           json: Json = False) -> None:
    """Files against hashes, ledger against files, ledger against the provider's list. Exit 1: something is wrong."""
    from orchestrator.apps.cli import verify as command

    act(lambda: command.verify(batch, local=local, fetch=fetch), as_json=json)


@app.command()
def pause(batch: BatchName, json: Json = False) -> None:
    """Buy nothing more for now; what is out is still brought home."""
    from orchestrator.apps.cli import steer

    act(lambda: steer.pause(batch), as_json=json)


@app.command()
def resume(batch: BatchName, json: Json = False) -> None:
    """Let a paused or canceled batch go on."""
    from orchestrator.apps.cli import steer

    act(lambda: steer.resume(batch), as_json=json)


@app.command()
def cancel(batch: BatchName, json: Json = False) -> None:
    """Buy nothing more, and end at the provider what is out."""
    from orchestrator.apps.cli import steer

    act(lambda: steer.cancel(batch), as_json=json)


@app.command()
def retry(batch: BatchName, class_: Annotated[list[str] | None, typer.Option("--class", help="Only this error class.")] = None,
          json: Json = False) -> None:
    """Let failed rows be bought again by the next run."""
    from orchestrator.apps.cli import steer

    act(lambda: steer.retry(batch, classes=frozenset(class_ or ())), as_json=json)


@app.command()
def jobs(json: Json = False) -> None:
    """The job files found, and what is wrong with any of them."""
    from orchestrator.apps.cli import look

    act(look.jobs, as_json=json)


@app.command()
def doctor(json: Json = False) -> None:
    """What is set up, who you are, what is missing, and what to type next."""
    from orchestrator.apps.cli import doctor as command

    act(command.doctor, as_json=json)


@app.command()
def demo(rows: Annotated[int, typer.Option(min=1, max=200, help="How many of the 200 rows.")] = 200, json: Json = False) -> None:
    """The main job on the stand-in for Replicate, from nothing."""
    from orchestrator.apps.cli import demo as command

    act(lambda: command.demo(rows=rows), as_json=json)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def simulate(context: typer.Context) -> None:
    """A local stand-in for Replicate, for rehearsals and tests (`simulate --help` lists its switches)."""
    from orchestrator.simulator.serve import main as serve

    raise typer.Exit(serve(context.args))


@app.command()
def up(workers: Annotated[int, typer.Option(min=1, max=64, help="How many worker processes.")] = 1) -> None:
    """Everything on this machine: worker, scheduler, web. `run` uses it while it is there."""
    from orchestrator.apps.up import up as command

    _play(lambda: command(workers=workers))


@app.command()
def worker() -> None:
    """One role: a Celery worker whose tasks are the stations."""
    from orchestrator.apps.worker.main import work

    _play(work)


@app.command()
def scheduler() -> None:
    """One role: wakes what is due and starts scheduled runs. Two of them do no harm."""
    from orchestrator.apps.scheduler import scheduler as command

    _play(command)


@app.command()
def web() -> None:
    """One role: takes in webhooks, and answers a small read-only API."""
    from orchestrator.apps.web.main import web as command

    _play(command)


@app.command()
def migrate() -> None:
    """Bring the ledger's tables up to date. Every command does so by itself; deployments may want it as a step of its own."""
    from orchestrator.apps.cli import look

    act(look.migrate, as_json=False)


def _play(role: Callable[[], None]) -> None:
    try:
        role()
    except OrchestratorError as error:
        trouble(error, as_json=False)
        raise typer.Exit(code_of(error)) from None


@app.command()
def version() -> None:
    """The version of this program."""
    from importlib.metadata import version as of

    typer.echo(of("replicate-orchestrator"))
