"""The keys that webhooks are signed with: learned from the provider, kept in memory, two at most."""

import asyncio
from collections.abc import Awaitable, Callable

from orchestrator.core.errors import OrchestratorError
from orchestrator.core.signature import secret_bytes

LEARN_EVERY_S = 10.0  # a flood of forgeries must not become a flood of questions to the provider
OLD_KEY_LIVES_S = 3600.0  # after a rotation; retries end a minute after completion


class SigningKeys:
    """The newest key, and for an hour the one before it."""

    def __init__(self, fetch: Callable[[], Awaitable[str]], *, boottime: Callable[[], float]) -> None:
        self._fetch = fetch
        self._boottime = boottime
        self._secrets: list[bytes] = []  # newest first
        self._replaced_at: float | None = None  # boottime, as long as there are two
        self._asked_at: float | None = None
        self._asking = asyncio.Lock()
        self.trouble: str | None = "the signing secret has not been fetched yet"

    def live(self) -> list[bytes]:
        """The keys that are good now, newest first."""
        if self._replaced_at is not None and self._boottime() - self._replaced_at >= OLD_KEY_LIVES_S:
            self._secrets, self._replaced_at = self._secrets[:1], None
        return self._secrets

    async def learn(self) -> bool:
        """Ask the provider, unless it was asked just now; whether the keys are others than before the call."""
        before = self._secrets
        async with self._asking:
            if self._asked_at is None or self._boottime() - self._asked_at >= LEARN_EVERY_S:
                self._asked_at = self._boottime()
                await self._ask()
        return self._secrets != before

    async def _ask(self) -> None:
        try:
            secret = secret_bytes(await self._fetch())
        except (OrchestratorError, ValueError) as error:
            self.trouble = str(error)
            return
        self.trouble = None
        if secret not in self._secrets[:1]:
            self._replaced_at = self._boottime() if self._secrets else None
            self._secrets = [secret, *self._secrets[:1]]
