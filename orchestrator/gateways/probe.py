"""Small looks at the surroundings, for `doctor`: is it there, which version, how is it set up."""

import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from redis.asyncio import Redis
from redis.exceptions import RedisError

from orchestrator.core.errors import Unreachable
from orchestrator.gateways.limiter import redis_client, redis_place

POST_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """A Redis that answers."""

    place: str
    version: str
    policy: str  # what it does when memory is full; `noeviction` keeps limits whole


async def redis_facts(redis_url: str) -> RedisFacts:
    """Ask a Redis about itself. Raises Unreachable."""
    async with _answering(redis_url) as client:
        facts = await client.info()
    return RedisFacts(redis_place(redis_url), str(facts.get("redis_version")), str(facts.get("maxmemory_policy")))


async def ping_redis(redis_url: str) -> None:
    """Raises Unreachable where no Redis answers there."""
    async with _answering(redis_url) as client:
        await client.ping()


@asynccontextmanager
async def _answering(redis_url: str) -> AsyncIterator[Redis]:
    client = redis_client(redis_url)
    try:
        yield client
    except (RedisError, OSError) as error:
        raise Unreachable(f"Redis at {redis_place(redis_url)} does not answer ({type(error).__name__})") from error
    finally:
        await client.aclose()


async def post(url: str, *, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    """One POST, as the provider would make it: redirects are not followed. Raises Unreachable."""
    try:
        async with httpx.AsyncClient(timeout=POST_TIMEOUT_S, follow_redirects=False) as client:
            answer = await client.post(url, content=body, headers=headers)
            return answer.status_code, answer.text
    except httpx.HTTPError as error:
        raise Unreachable(f"{url.partition('?')[0]} cannot be reached ({type(error).__name__})") from error


def free_bytes(folder: Path) -> int:
    """Free space on the disk that holds a folder, or will hold it."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(there).free


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or the folder itself."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return there.is_dir() and os.access(there, os.W_OK)


def sqlite_version() -> str:
    """Of the SQLite that Python brought."""
    return sqlite3.sqlite_version
