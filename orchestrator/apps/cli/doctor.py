"""`doctor`: what is set up, who you are, what is missing, and what to type next. Spends nothing, makes nothing."""

import json
import platform
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from orchestrator import wiring
from orchestrator.apps.cli.ending import Ending, Exit
from orchestrator.core.callback import callback_url
from orchestrator.core.errors import BadInput, OrchestratorError, TokenRefused, Unreachable
from orchestrator.core.ports import Rooms
from orchestrator.core.signature import secret_bytes, sign
from orchestrator.flow.asking import paced
from orchestrator.flow.presence import present
from orchestrator.wiring import Settings

LEAST_FREE_BYTES = 1 << 30
OFFSET_NOTED_S = 60.0
NO_ATTEMPT = "0" * 26
_SETTING = {"redis": "ORCHESTRATOR_REDIS_URL", "ledger": "ORCHESTRATOR_DATABASE_URL", "account": "REPLICATE_BASE_URL",
            "webhooks": "REPLICATE_BASE_URL"}
_MARKS = {"ok": "ok  ", "note": "note", "wrong": "WRONG"}


def _reachable(about: str) -> str:
    return f"make it reachable ({_SETTING[about]}), then: orchestrator doctor"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: `ok`, `note` (works, but know it) or `wrong`, and what to do about it."""

    about: str
    state: str
    text: str
    remedy: str | None = None


@dataclass(slots=True)
class Doctor:
    """All findings of one visit, and the exit code that the worst of them means."""

    settings: Settings
    findings: list[Finding] = field(default_factory=list)
    code: Exit = Exit.DONE

    def find(self, about: str, text: str, *, state: str = "ok", remedy: str | None = None, code: Exit = Exit.DONE) -> None:
        """Note one finding."""
        self.findings.append(Finding(about, state, text, remedy))
        self.code = max(self.code, code)

    async def look(self, about: str, at: Callable[[], Awaitable[None]]) -> None:
        """One look, whose failure is a finding too."""
        try:
            await at()
        except TokenRefused as error:
            self.find(about, str(error), state="wrong", code=Exit.UNREACHABLE, remedy="export REPLICATE_API_TOKEN=r8_… anew")
        except Unreachable as error:
            self.find(about, str(error), state="wrong", code=Exit.UNREACHABLE,
                      remedy=_reachable(about))
        except OrchestratorError as error:
            self.find(about, str(error), state="wrong", code=Exit.BAD_INPUT)


async def doctor() -> Ending:
    """Look at everything, in the order in which a newcomer would miss it."""
    visit = Doctor(wiring.own_settings())
    _program(visit)
    await visit.look("redis", lambda: _redis(visit))
    if visit.settings.api_token is None:
        visit.find("token", "REPLICATE_API_TOKEN is not set", state="wrong", code=Exit.BAD_INPUT,
                   remedy="export REPLICATE_API_TOKEN=r8_…   (from https://replicate.com/account/api-tokens; or in .env)")
    has_ledger = not wiring.is_new(visit.settings)
    if not has_ledger:
        visit.find("ledger", f"none yet; the first run makes {visit.settings.ledger_shown}")
    try:
        async with wiring.rooms(visit.settings, token_needed=False, ledger_needed=has_ledger) as rooms:
            if has_ledger:
                await visit.look("ledger", lambda: _ledger(visit, rooms))
            if visit.settings.api_token is not None:
                await visit.look("account", lambda: _account(visit, rooms))
                if visit.code is not Exit.UNREACHABLE:
                    await visit.look("webhooks", lambda: _webhooks(visit, rooms))
    except OrchestratorError as error:
        code = Exit.UNREACHABLE if isinstance(error, Unreachable) else Exit.BAD_INPUT
        visit.find("ledger", str(error), state="wrong", code=code,
                   remedy=_reachable("ledger") if isinstance(error, Unreachable) else None)
    jobs = _jobs(visit)
    return _ending(visit, _next(visit, jobs))


def _program(visit: Doctor) -> None:
    visit.find("program", f"replicate-orchestrator {version('replicate-orchestrator')}, Python {platform.python_version()}, "
                          f"SQLite {wiring.sqlite_version()}, celery {version('celery')}, httpx {version('httpx')}")
    home = visit.settings.home
    if wiring.is_writable(home):
        visit.find("home", str(home))
    else:
        visit.find("home", f"{home} cannot be written", state="wrong", code=Exit.BAD_INPUT,
                   remedy="set ORCHESTRATOR_HOME to a folder of yours")
    free = wiring.free_bytes(home)
    visit.find("disk", f"{free / 1e9:,.1f} GB free", state="ok" if free > LEAST_FREE_BYTES else "note",
               remedy=None if free > LEAST_FREE_BYTES else "outputs need room: choose another disk with --output")


async def _redis(visit: Doctor) -> None:
    if visit.settings.redis_url is None:
        visit.find("redis", f"a private one, started when needed ({wiring.redis_server()})")
        return
    facts = await wiring.redis_facts(wiring.shared_redis(visit.settings))
    evicts = facts.policy != "noeviction"
    visit.find("redis", f"{facts.version} at {facts.place}, maxmemory-policy {facts.policy}", state="note" if evicts else "ok",
               remedy="set maxmemory-policy noeviction: a rate limit that was evicted is no limit" if evicts else None)


async def _ledger(visit: Doctor, rooms: Rooms) -> None:
    batches = await wiring.views(rooms).batches(limit=500)
    live = sum(batch.state.value in ("loading", "running", "paused", "canceling") for batch in batches)
    visit.find("ledger", f"{visit.settings.ledger_shown}: {len(batches)} batches, {live} not ended")
    roles = await present(rooms)
    shown = ", ".join(f"{role.id}" + (f" ({role.place})" if role.place else "") for role in roles)
    visit.find("at work", shown or "nobody: `run` brings what it needs, `orchestrator up` stays")


async def _account(visit: Doctor, rooms: Rooms) -> None:
    name = await paced(rooms, None, rooms.predictions.account)
    rate = rooms.tempo.creates_per_minute
    visit.find("account", f"{name} at {visit.settings.base_url}, "
                          + (f"{rate:,.0f} creates per minute are used" if rate else "no rate of its own is kept"))
    page = await paced(rooms, None, rooms.predictions.list_page)
    offset_s = page.provider_offset_s
    if offset_s is None:
        visit.find("clock", "the provider told no time", state="note")
    elif abs(offset_s) > OFFSET_NOTED_S:
        visit.find("clock", f"this machine is {abs(offset_s):,.0f} s {'behind' if offset_s > 0 else 'ahead of'} the provider",
                   state="note", remedy="set the clock (NTP): webhooks off by more than five minutes are refused")
    else:
        visit.find("clock", f"within {max(1.0, abs(offset_s)):.0f} s of the provider's")


async def _webhooks(visit: Doctor, rooms: Rooms) -> None:
    """A probe signed like the provider's own, around the loop: out to the public URL, in through the web part."""
    secret = secret_bytes(await paced(rooms, None, rooms.predictions.webhook_secret))
    public_url = visit.settings.public_url
    if public_url is None:
        visit.find("webhooks", "no public URL: completions are found by polling the list in bulk, some seconds later",
                   remedy="optional: set ORCHESTRATOR_PUBLIC_URL to where Replicate can reach port "
                          f"{visit.settings.web_address[1]} of this machine (a tunnel, a reverse proxy)")
        return
    body, stamp = json.dumps({"id": "doctor", "status": "starting"}).encode(), int(rooms.clock.now().timestamp())
    message_id = "msg_" + rooms.clock.token()
    headers = {"content-type": "application/json", "webhook-id": message_id, "webhook-timestamp": str(stamp),
               "webhook-signature": sign(secret, message_id=message_id, timestamp=stamp, body=body)}
    remedy = f"the public URL must lead to a web part: orchestrator up (it listens on {visit.settings.web_bind})"
    try:
        status, text = await wiring.post(callback_url(public_url, NO_ATTEMPT), body=body, headers=headers)
    except Unreachable as error:
        visit.find("webhooks", str(error), state="note", remedy=remedy)
        return
    if status == 404 and "unknown attempt" in text:
        https = "" if public_url.startswith("https://") else "; Replicate documents https URLs only"
        visit.find("webhooks", f"a signed probe came home through {public_url}{https}", state="note" if https else "ok")
    else:
        visit.find("webhooks", f"{public_url} answered {status}: {text.strip()[:120]}", state="note", remedy=remedy)


def _jobs(visit: Doctor) -> list[str]:
    """Names of the job files that are ready to run."""
    ready: list[str] = []
    wrong: list[str] = []
    for path in wiring.discover_jobs(Path.cwd()):
        try:
            (wrong if wiring.load_job(path, changes={}).job.unsupported() else ready).append(path.stem)
        except BadInput:
            wrong.append(path.stem)
    if wrong:
        visit.find("jobs", f"{len(ready)} ready; not ready: {', '.join(wrong)}", state="note", remedy="orchestrator jobs")
    else:
        visit.find("jobs", f"{len(ready)} ready" if ready else "no jobs/ folder here")
    return ready


def _next(visit: Doctor, jobs: list[str]) -> str:
    wrong = next((finding for finding in visit.findings if finding.state == "wrong"), None)
    if wrong is not None:
        return wrong.remedy or f"put right first: {wrong.about}"
    return f"orchestrator plan {jobs[0]}" if jobs else "orchestrator demo   (or write jobs/yours.yaml: see the README)"


def _ending(visit: Doctor, following: str) -> Ending:
    lines = []
    for finding in visit.findings:
        lines.append(f"{_MARKS[finding.state]:<5} {finding.about:<9} {finding.text}")
        if finding.remedy:
            lines.append(f"{'':<15} → {finding.remedy}")
    document = {"findings": [{"about": f.about, "state": f.state, "text": f.text, "remedy": f.remedy} for f in visit.findings],
                "next": following}
    return Ending(visit.code, document, (*lines, "", f"next: {following}"))
