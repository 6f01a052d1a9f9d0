"""Fetches images from addresses without giving access to the server's own network.

A host name is resolved here, all of its addresses must be public, and the connection goes to a checked address.
Redirects are not followed, proxies of the environment are not used, and bytes and time are limited.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterable

import httpcore2

from .api_error import ApiError


NAT64 = ipaddress.ip_network("64:ff9b::/96")
NOT_PUBLIC = ipaddress.ip_network("192.0.0.0/24")  # addresses of protocols, some of which Python considers global


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, and so does an IPv4 address embedded in it."""
    found = ipaddress.ip_address(address.partition("%")[0])
    own = found.is_global and not (found.is_multicast or found.is_reserved or found in NOT_PUBLIC)
    if isinstance(found, ipaddress.IPv4Address):
        return own
    if found.ipv4_mapped or found in NAT64:
        return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
    return own and not found.is_site_local and (found.sixtofour is None or is_public(str(found.sixtofour)))


class NotPublic(OSError):
    """A name resolves to a private network."""


class CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to checked addresses only.

    Args:
        allowed: Whether an IP address may be connected to.
    """

    def __init__(self, allowed: Callable[[str], bool]):
        self.allowed = allowed
        self.backend = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [each[4][0] for each in found]
        if not addresses or not all(map(self.allowed, addresses)):
            raise NotPublic(host)
        return await self.backend.connect_tcp(addresses[0], port, timeout, local_address, socket_options)


class ImageFetcher:
    """Gets the bytes behind an address.

    Args:
        max_bytes: Largest size of an image file.
        seconds: Time for the whole request.
        allowed: Whether an IP address may be connected to.
    """

    def __init__(self, max_bytes: int, seconds: float, allowed: Callable[[str], bool] = is_public):
        self.max_bytes, self.seconds, self.allowed = max_bytes, seconds, allowed

    async def fetch(self, address: str, name: str) -> bytes:
        """The bytes.

        Raises:
            ApiError: If the URL is not on the public web, or does not respond in time.
        """
        if not address.lower().startswith(("http://", "https://")):
            raise _refusal(name, "has an address that is neither http nor https")
        try:
            async with asyncio.timeout(self.seconds):
                return await self._get(address, name)
        except NotPublic:
            raise _refusal(name, "has an address in a private network, which is never contacted") from None
        except TimeoutError:
            raise _refusal(name, f"did not arrive within {self.seconds:g} seconds") from None
        except (OSError, ValueError, httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException):
            raise _refusal(name, "could not be fetched") from None

    async def _get(self, address: str, name: str) -> bytes:
        backend, data = CheckedBackend(self.allowed), bytearray()
        headers = {"User-Agent": "uniedit", "Accept": "image/*", "Accept-Encoding": "identity"}
        async with httpcore2.AsyncConnectionPool(network_backend=backend) as pool:
            async with pool.stream("GET", address, headers=headers) as response:
                if response.status != 200:
                    raise _refusal(name, f"was answered with status {response.status} by its server")
                async for chunk in response.aiter_stream():
                    data += chunk
                    if len(data) > self.max_bytes:
                        raise _refusal(name, f"is larger than {self.max_bytes / 1e6:g} MB")
        return bytes(data)


def _refusal(name: str, problem: str) -> ApiError:
    return ApiError(400, f"{name} {problem}: send it as a data URL.", code="image_not_fetched", param=name)
