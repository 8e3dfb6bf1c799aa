"""The keys that webhooks are signed with: learned from the provider, kept in memory, two at most."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from orchestrator.core.errors import OrchestratorError
from orchestrator.core.signature import secret_bytes

LEARN_EVERY_S = 10.0  # a flood of forgeries must not become a flood of questions to the provider
OLD_KEY_LIVES_S = 3600.0  # after a rotation; retries end a minute after completion


@dataclass(slots=True)
class _Key:
    secret: bytes
    text: str
    replaced_at: float | None = None  # boottime


class SigningKeys:
    """The newest key, and for an hour the one before it."""

    def __init__(self, fetch: Callable[[], Awaitable[str]], *, boottime: Callable[[], float]) -> None:
        self._fetch = fetch
        self._boottime = boottime
        self._keys: list[_Key] = []
        self._asked_at: float | None = None
        self._asking = asyncio.Lock()
        self.trouble: str | None = "the signing secret has not been fetched yet"

    def live(self) -> list[bytes]:
        """The keys that are good now, newest first."""
        now = self._boottime()
        return [key.secret for key in self._keys if key.replaced_at is None or now - key.replaced_at < OLD_KEY_LIVES_S]

    async def learn(self) -> bool:
        """Ask the provider, unless it was asked just now; whether the keys are others than before the call."""
        before = [key.text for key in self._keys]
        async with self._asking:
            if self._asked_at is None or self._boottime() - self._asked_at >= LEARN_EVERY_S:
                self._asked_at = self._boottime()
                await self._ask()
        return [key.text for key in self._keys] != before

    async def _ask(self) -> None:
        try:
            text = await self._fetch()
            secret = secret_bytes(text)
        except (OrchestratorError, ValueError) as error:
            self.trouble = str(error)
            return
        self.trouble = None
        if self._keys and self._keys[0].text == text:
            return
        if self._keys:
            self._keys[0].replaced_at = self._boottime()
        self._keys = [_Key(secret, text), *self._keys[:1]]
