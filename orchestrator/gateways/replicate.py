"""Replicate's HTTP API. Translates, and says of a purchase what its outcome proves; never repeats one.

Facts about the API are from Replicate's docs (HTTP API, rate limits, prediction lifecycle).
"""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import orjson
from multidict import CIMultiDict

from orchestrator.core.errors import BadInput, NotFound, ProviderAway, ProviderRefusal, Throttled, TokenRefused, Unreadable
from orchestrator.core.ports import LAPSED, Clock, CreateAnswer, Model, Page, Proof
from orchestrator.core.prediction import parse
from orchestrator.core.records import Prediction, Target
from orchestrator.core.refusals import NOTHING_BOUGHT, retry_after
from orchestrator.gateways.clock import SystemClock
from orchestrator.gateways.repeat import repeat
from orchestrator.gateways.wire import Answer, TooLate, Wire, cause_in_words, not_sent, proxy_of

T = TypeVar("T")
CONNECTIONS = 512  # above what all submitting tasks of one process have in the air
LONGEST_DETAIL = 2000
SHORTEST_DEADLINE_S = 5  # Replicate docs: prediction lifecycle, Cancel-After
READ_WAIT_S = 8.0


class ReplicateApi:
    """`core.ports.Predictions` over HTTP; an async context manager.

    `base_url` with or without `/v1`; `request_timeout_s` bounds each request as a whole. Raises BadInput for a base URL
    or a token that cannot be one."""

    def __init__(self, *, base_url: str, token: str, request_timeout_s: float = 30.0, clock: Clock | None = None,
                 connections: int = CONNECTIONS, read_attempts: int = 4) -> None:
        self._base = _base(base_url)
        self._clock = clock or SystemClock()
        self._token = _token(token)
        self._read_attempts = read_attempts
        self._headers = CIMultiDict({
            "Host": self._base.netloc.decode(), "Authorization": f"Bearer {self._token}", "Accept": "application/json",
            "Accept-Encoding": "gzip", "User-Agent": "replicate-orchestrator"})
        self._create_headers: dict[float | None, CIMultiDict[str]] = {}
        self._wire = Wire(timeout_s=request_timeout_s, boottime=self._clock.boottime, connections=connections,
                          proxy=proxy_of(self._base), tls=None)
        self._create_urls: dict[Target, httpx.URL] = {}
        self.offset_s: float | None = None
        self.reads_left: int | None = None

    def __repr__(self) -> str:
        return f"ReplicateApi({self._place})"

    async def __aenter__(self) -> "ReplicateApi":
        await self._wire.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._wire.__aexit__(*exc)

    # The purchase

    async def create(self, target: Target, *, input_json: str, post_by_s: float, webhook: str | None = None,
                     cancel_after_s: float | None = None) -> CreateAnswer:
        """As the port says; `input_json` goes out byte for byte. Only a cancellation is raised, and it proves nothing."""
        content = _create_body(target, input_json=input_json, webhook=webhook)
        try:
            answer = await self._wire.exchange("POST", self._create_url(target), headers=self._headers_of(cancel_after_s),
                                               content=content, write_by_s=post_by_s)
            return self._answered(answer)
        except Exception as error:  # whatever it is: only an allow-list proves that nothing was sent
            return self._unanswered(error)

    def _headers_of(self, cancel_after_s: float | None) -> CIMultiDict[str]:
        """Of a create with this deadline; the same for all rows of a batch."""
        if cancel_after_s not in self._create_headers:
            made = CIMultiDict(self._headers)
            made["Content-Type"] = "application/json"
            if cancel_after_s is not None:
                made["Cancel-After"] = f"{max(SHORTEST_DEADLINE_S, int(cancel_after_s))}s"
            self._create_headers[cancel_after_s] = made
        return self._create_headers[cancel_after_s]

    def _create_url(self, target: Target) -> httpx.URL:
        if target not in self._create_urls:
            owned = f"/{target.endpoint}/{quote(target.name)}/predictions"
            self._create_urls[target] = self._url("/predictions" if target.endpoint == "predictions" else owned)
        return self._create_urls[target]

    def _unanswered(self, error: Exception) -> CreateAnswer:
        now = self._clock.now()
        if isinstance(error, TooLate):
            return CreateAnswer(Proof.NOT_SENT, detail=LAPSED, sent_until_at=now)
        if not_sent(error):
            return CreateAnswer(Proof.NOT_SENT, detail=f"cannot reach {self._place}: {cause_in_words(error)}",
                                sent_until_at=now)
        return CreateAnswer(Proof.UNSURE, detail=f"the answer of {self._place} was lost: {cause_in_words(error)}",
                            sent_until_at=now)

    def _answered(self, answer: Answer) -> CreateAnswer:
        now, body = self._clock.now(), _json(answer.body)
        prediction, detail, hint_s, proof = None, None, None, Proof.UNSURE
        if 200 <= answer.status < 300:
            prediction = _readable(body)
            proof = Proof.CREATED if prediction else Proof.UNSURE
            detail = None if prediction else f"an answer {answer.status} without a readable prediction"
        else:
            detail = self._detail(answer, body)
            hint_s = retry_after(answer.headers, body, detail) if answer.status == 429 else None
            proof = Proof.REFUSED if answer.status in NOTHING_BOUGHT else Proof.UNSURE
        return CreateAnswer(
            proof, prediction, answer.status, detail, hint_s, sent_until_at=now,
            provider_offset_s=self._heard(answer),
            rate_remaining=_remaining(answer),
            rate_reset_s=_float(answer.headers.get("ratelimit-reset")))

    # Reads: they buy nothing and may be repeated. Not when they are throttled: that is everybody's pause (flow/listing.py).

    async def account(self) -> str:
        """As the port says."""
        found = await self._read("GET", self._url("/account"), what="the account")
        return _field(found, "username", self._place)

    async def model(self, name: str, *, version: str | None = None) -> Model:
        """As the port says. Without a version, the model's latest."""
        if not name:
            raise NotFound("a version alone does not say whose model it is; write owner/name:version", status=404)
        path = f"/models/{quote(name)}"
        found = await self._read("GET", self._url(path), what=f"model {name}")
        latest = found.get("latest_version") or {}
        if version is not None and latest.get("id") != version:
            latest = await self._read("GET", self._url(f"{path}/versions/{quote(version, safe='')}"),
                                      what=f"version {version} of {name}")
        return Model(name, found.get("is_official") is True, latest.get("id"), latest.get("openapi_schema") or {},
                     found.get("visibility") == "private")

    async def deployment(self, name: str) -> Model:
        """As the port says."""
        found = await self._read("GET", self._url(f"/deployments/{quote(name)}"), what=f"deployment {name}")
        release = found.get("current_release") or {}
        return await self.model(_field(release, "model", self._place), version=_field(release, "version", self._place))

    async def get(self, prediction_id: str) -> Prediction:
        """As the port says."""
        url = self._url(f"/predictions/{quote(prediction_id, safe='')}")
        return self._prediction(await self._read("GET", url, what=f"prediction {prediction_id}"))

    async def webhook_secret(self) -> str:
        """As the port says (Replicate docs: verify webhooks)."""
        found = await self._read("GET", self._url("/webhooks/default/secret"), what="the webhook secret")
        return _field(found, "key", self._place)

    async def cancel(self, prediction_id: str) -> Prediction:
        """As the port says. Canceling twice is harmless, so it is repeated like a read."""
        url = self._url(f"/predictions/{quote(prediction_id, safe='')}/cancel")
        return self._prediction(await self._read("POST", url, what=f"prediction {prediction_id}"))

    async def list_page(self, *, url: str | None = None, created_after: datetime | None = None,
                        created_before: datetime | None = None) -> Page:
        """As the port says. A `url` on another host is refused: the token would go there."""
        if url is None:
            bounds = {"created_after": created_after, "created_before": created_before}
            query = {name: _iso(moment) for name, moment in bounds.items() if moment is not None}
            wanted = self._url("/predictions").copy_merge_params(query)
        else:
            wanted = self._same_origin(url)
        answer = await self._repeat(lambda: self._once("GET", wanted, what="the list of predictions"))
        body = self._document(answer)
        results, following = body.get("results"), body.get("next")
        if not isinstance(results, list):
            raise ProviderAway(f"{self._place} answered with a list that cannot be read")
        found, unreadable = self._readable_of(results)
        return Page(found, following if isinstance(following, str) else None, _offset_s(answer, self._clock.now()), unreadable)

    def _readable_of(self, results: list[Any]) -> tuple[list[Prediction], tuple[str, ...]]:
        """The predictions of a page, and what is wrong with those that cannot be read: one odd one must not hide a hundred. A
        page of nothing else is no list."""
        found, unreadable = list[Prediction](), list[str]()
        for item in results:
            try:
                found.append(parse(item))
            except (ValueError, AttributeError) as error:
                unreadable.append(str(error))
        if unreadable and not found:
            raise ProviderAway(f"{self._place} answered with a list that cannot be read: {unreadable[0]}")
        return found, tuple(unreadable)

    def _heard(self, answer: Answer) -> float | None:
        """The provider's clock minus ours, kept as the newest one."""
        offset_s = _offset_s(answer, self._clock.now())
        self.offset_s = self.offset_s if offset_s is None else offset_s
        return offset_s

    async def _read(self, method: str, url: httpx.URL, *, what: str) -> dict[str, Any]:
        return self._document(await self._repeat(lambda: self._once(method, url, what=what)))

    async def _repeat(self, call: Callable[[], Any]) -> Answer:
        answer: Answer = await repeat(call, on=(ProviderAway,), attempts=self._read_attempts, max_wait_s=READ_WAIT_S)
        return answer

    async def _once(self, method: str, url: httpx.URL, *, what: str) -> Answer:
        try:
            answer = await self._wire.exchange(method, url, headers=self._headers)
        except Exception as error:  # a read proves nothing and costs nothing, however it fails
            raise ProviderAway(f"cannot reach {self._place}: {cause_in_words(error)}") from error
        self._heard(answer)
        self.reads_left = _remaining(answer)
        if 200 <= answer.status < 300:
            return answer
        raise self._refusal(answer, what=what)

    def _refusal(self, answer: Answer, *, what: str) -> Exception:
        body = _json(answer.body)
        status, detail = answer.status, self._detail(answer, body)
        if status in (401, 403):
            return TokenRefused(f"{self._place} does not accept the token: check REPLICATE_API_TOKEN "
                                f"({status}: {detail})")
        if status == 404:
            return NotFound(f"{self._place} does not know {what} ({detail})", status=404)
        if status == 429:
            hint_s = retry_after(answer.headers, body, detail)
            return Throttled(f"{self._place} throttles reading {what} (429: {detail})", retry_after_s=hint_s)
        if status >= 500:
            return ProviderAway(f"{self._place} is out of order ({status}: {detail})")
        return ProviderRefusal(f"{self._place} refused {what} ({status}: {detail})", status=status)

    # Small translations

    @property
    def _place(self) -> str:
        return f"{self._base.scheme}://{self._base.netloc.decode()}"

    def _url(self, path: str) -> httpx.URL:
        return self._base.copy_with(raw_path=self._base.raw_path.rstrip(b"/") + path.encode())

    def _same_origin(self, url: str) -> httpx.URL:
        try:
            wanted = httpx.URL(url)
        except httpx.InvalidURL:
            wanted = httpx.URL("")
        if (wanted.scheme, wanted.host, wanted.port) != (self._base.scheme, self._base.host, self._base.port):
            raise ProviderAway(f"{self._place} named a next page elsewhere ({wanted.host or 'nowhere'}); it is not "
                              "followed, the token would go there")
        return wanted.copy_with(userinfo=b"", fragment=None)

    def _document(self, answer: Answer) -> dict[str, Any]:
        body = _json(answer.body)
        if not isinstance(body, dict):
            raise ProviderAway(f"{self._place} answered {answer.status} with a body that is no JSON object: is "
                              "REPLICATE_BASE_URL right?")
        return body

    def _prediction(self, item: Any) -> Prediction:
        try:
            return parse(item)
        except (ValueError, AttributeError) as error:
            raise Unreadable(f"{self._place} answered with a prediction that cannot be read: {error}", status=200) from error

    def _detail(self, answer: Answer, body: Any) -> str:
        """The provider's words, shortened, and never our token should it be among them."""
        told = (body.get("detail") or body.get("title")) if isinstance(body, dict) else None
        if told is None:
            told = answer.body[:200].decode(errors="replace")
        text = " ".join((told if isinstance(told, str) else json.dumps(told)).split())[:LONGEST_DETAIL]
        return text.replace(self._token, "***") if self._token else text


def _base(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text.strip())
    except httpx.InvalidURL as error:
        raise BadInput(f"REPLICATE_BASE_URL {text!r} is no URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
        raise BadInput("REPLICATE_BASE_URL must look like https://api.replicate.com, with or without /v1")
    path = url.path.rstrip("/")
    return url.copy_with(path=path if path.endswith("/v1") else path + "/v1")


def _token(text: str) -> str:
    """Line ends around a token, as files have them, are cut; anything else odd would spoil every request."""
    token = text.strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise BadInput("REPLICATE_API_TOKEN holds characters that no token has: copy it again from "
                       "https://replicate.com/account/api-tokens")
    return token


def _create_body(target: Target, *, input_json: str, webhook: str | None) -> bytes:
    """The input's bytes are spliced in: what was committed to the ledger is what is sent."""
    body = b'{"input":' + input_json.encode(errors="backslashreplace")  # a lone surrogate becomes its JSON escape
    if target.endpoint == "predictions":
        body += b',"version":' + orjson.dumps(target.version or target.name)
    if webhook is not None:
        body += b',"webhook":' + orjson.dumps(webhook) + b',"webhook_events_filter":["completed"]'
    return body + b"}"


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _readable(body: Any) -> Prediction | None:
    if isinstance(body, dict):
        with suppress(ValueError):
            return parse(body)
    return None


def _field(document: dict[str, Any], key: str, place: str) -> str:
    value = document.get(key)
    if not isinstance(value, str) or not value:
        raise ProviderAway(f"{place} answered without {key!r}: is REPLICATE_BASE_URL right?")
    return value


def _remaining(answer: Answer) -> int | None:
    """What an answer says is left of the budget that its request was of (seen on Replicate's answers)."""
    remaining = _float(answer.headers.get("ratelimit-remaining"))
    return None if remaining is None else int(remaining)


def _float(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _offset_s(answer: Answer, now: datetime) -> float | None:
    """The provider's clock minus ours. The Date header is cut to whole seconds: its middle is the best guess."""
    date = _date(answer.headers.get("date", ""))
    return None if date is None else (date + timedelta(milliseconds=500) - now).total_seconds()


@lru_cache(maxsize=4)
def _date(text: str) -> datetime | None:
    """Every answer of one second tells the same."""
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date
