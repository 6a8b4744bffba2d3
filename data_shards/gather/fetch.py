"""One HTTP request and everything that can go wrong with it."""

import asyncio
import ssl
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import TypeAlias

import aiohttp
from yarl import URL

from data_shards.gather.addresses import NotPublicError, public_socket
from data_shards.gather.urls import host_of

_REDIRECTS = (301, 302, 303, 307, 308)
_TRY_AGAIN = (408, 425, 429)  # and 5xx
_CHUNK = 64 * 1024  # bytes
_USER_AGENT = "rebias-shards (image data set; one list, few requests a host)"


@dataclass(frozen=True)
class Limits:
    """Bounds of a request: seconds to connect, between two reads and in total; bytes of a body."""

    connect_timeout: float
    read_timeout: float
    timeout: float
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Redirect:
    """The server names another http or https address."""

    url: str


@dataclass(frozen=True, slots=True)
class Failure:
    """No content, with a short code why.

    ``again``: another attempt may help. ``retry_after``: seconds that the server asks to wait.
    ``host``: the host itself could not be reached.
    """

    reason: str
    again: bool
    retry_after: float | None = None
    host: bool = False


Outcome: TypeAlias = bytes | Redirect | Failure


class Fetcher:
    """Requests addresses without cookies, proxies or credentials; follows no redirect."""

    def __init__(self, limits: Limits, *, allow_private: bool) -> None:
        """Call this inside a running event loop."""
        self._limits = limits
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, socket_factory=None if allow_private else public_socket
            ),
            timeout=aiohttp.ClientTimeout(
                total=limits.timeout,
                sock_connect=limits.connect_timeout,
                sock_read=limits.read_timeout,
            ),
            # Ask for uncompressed bodies: a compressed one could be a bomb.
            headers={"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"},
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def get(self, url: str) -> Outcome:
        """Return the body, the address to request instead, or why there is no body."""
        try:
            async with self._session.get(URL(url), allow_redirects=False) as response:
                return await self._content(response)
        except aiohttp.ClientConnectorCertificateError:
            return Failure("certificate", again=False)
        except aiohttp.ClientConnectorDNSError:
            return Failure("dns", again=True, host=True)
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, NotPublicError):
                return Failure("not-public", again=False)
            tls = isinstance(error.os_error, ssl.SSLError)
            return Failure("tls" if tls else "connect", again=True, host=True)
        except aiohttp.ConnectionTimeoutError:
            return Failure("connect-timeout", again=True, host=True)
        except aiohttp.SocketTimeoutError:
            return Failure("read-timeout", again=True)
        except (TimeoutError, asyncio.TimeoutError):  # two classes in Python 3.10
            return Failure("timeout", again=True)
        except aiohttp.ClientPayloadError:
            return Failure("incomplete", again=True)
        except aiohttp.InvalidURL:
            return Failure("malformed-url", again=False)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            return Failure("disconnected", again=True)
        except aiohttp.ClientError:
            return Failure("protocol", again=True)
        except ValueError:  # the host is not a domain name
            return Failure("malformed-url", again=False)

    async def _content(self, response: aiohttp.ClientResponse) -> Outcome:
        status = response.status
        if status in _REDIRECTS:
            return self._redirect(response)
        if status != 200:
            wait = _seconds(response.headers.get("Retry-After", ""))
            again = status in _TRY_AGAIN or status >= 500
            return Failure(f"http-{status}", again=again, retry_after=wait)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            response.close()
            return Failure("content-encoding", again=False)
        if (response.content_length or 0) > self._limits.max_bytes:
            response.close()
            return Failure("too-large", again=False)
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK):
            body += chunk
            if len(body) > self._limits.max_bytes:
                response.close()  # do not read the rest to reuse the connection
                return Failure("too-large", again=False)
        return bytes(body)

    def _redirect(self, response: aiohttp.ClientResponse) -> Outcome:
        target = response.headers.get("Location", "")
        response.close()
        try:
            url = str(response.url.join(URL(target)))
        except ValueError:
            return Failure("redirect-malformed", again=False)
        if not target:
            return Failure("redirect-malformed", again=False)
        if not host_of(url):
            return Failure("redirect-scheme", again=False)
        return Redirect(url)


def _seconds(text: str) -> float | None:
    """Return the seconds that a Retry-After header asks for, as a number or as a date."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except (ValueError, TypeError, OverflowError):
        return None
