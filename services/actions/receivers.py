"""Receivers of webhooks: one HTTP request to one address that may be told, and what came of it.

Whom a name stands for is decided at the very address that is connected to, after the name was resolved: a name that
stood for a public address at its registration and for a private one now (DNS rebinding) is refused.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from services.actions.domain.webhooks import Address, Network, is_allowed, is_public
from services.foundation.errors import RefusedError

#: Of an answer that is all that is read.
MAX_ANSWER_BYTES = 64 * 1024
_RESOLVE_S = 5.0


class TargetNotAllowedError(OSError):
    """The address is private, loopback, link-local or otherwise not public."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request: `status` is 0 where nobody answered, and `error` tells why it failed, empty: it did not.

    `retry_after_s` is what the receiver asks for.
    """

    status: int
    error: str = ""
    retry_after_s: float = 0.0


class Receivers:
    """Sends to whoever may be told. `allowed` are networks that may although they are not public."""

    def __init__(self, allowed: Sequence[Network], timeout_s: float) -> None:
        self._allowed = allowed
        # In the clear only to where it was allowed on purpose.
        self._sessions = {
            "https": _session(lambda address: self._may(address, clear=False), timeout_s),
            "http": _session(lambda address: self._may(address, clear=True), timeout_s),
        }

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()

    def _may(self, address: Address, *, clear: bool) -> bool:
        return is_allowed(address, self._allowed) or (not clear and is_public(address))

    async def check(self, url: str) -> None:
        """Make sure that a target may be told.

        Raises:
            RefusedError: UNKNOWN_HOST, or TARGET_NOT_ALLOWED.
        """
        parts = urlsplit(url)
        try:
            async with asyncio.timeout(_RESOLVE_S):
                found = await asyncio.get_running_loop().getaddrinfo(
                    parts.hostname, parts.port or parts.scheme, type=socket.SOCK_STREAM
                )
        except (OSError, UnicodeError, TimeoutError) as error:
            raise RefusedError("UNKNOWN_HOST", f"{parts.hostname} is not found") from error
        for *_, place in found:
            address = ipaddress.ip_address(str(place[0]).partition("%")[0])
            if not self._may(address, clear=parts.scheme == "http"):
                why = "is not public" if not is_public(address) else "is told over https only"
                but = "; RECORRIDO_WEBHOOK_ALLOWED_NETWORKS of actions can allow it"
                raise RefusedError("TARGET_NOT_ALLOWED", f"{parts.hostname} ({address}) {why}{but}")

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """POST once; follow nothing."""
        session = self._sessions[urlsplit(url).scheme]
        try:
            async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                await response.content.read(MAX_ANSWER_BYTES)
                if not response.content.at_eof():
                    # Whatever else it has to say is not listened to.
                    response.close()
                status, asked = response.status, response.headers.get("Retry-After", "")
        except TimeoutError:
            return Answer(0, "no answer in time")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(0, _told(error))
        if 200 <= status < 300:
            return Answer(status)
        return Answer(status, f"answered {status}", float(asked) if asked.isdecimal() and len(asked) < 10 else 0.0)


def _told(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TargetNotAllowedError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__}: {error}"[:500]


def _session(may: Callable[[Address], bool], timeout_s: float) -> aiohttp.ClientSession:
    def connect_to(info: Any) -> socket.socket:
        family, kind, protocol, _, place = info
        address = ipaddress.ip_address(str(place[0]).partition("%")[0])
        if not may(address):
            raise TargetNotAllowedError(f"{address} is not allowed")
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made

    return aiohttp.ClientSession(
        # No limit over all: a receiver that is slow must not take another one's connection.
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=10, socket_factory=connect_to),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        headers={"User-Agent": "recorrido"},
    )
