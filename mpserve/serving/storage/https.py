"""A file on a web server, brought by HTTP with ranges. Needs no package."""

import base64
import http.client
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

from mpserve.errors import ConfigurationError
from mpserve.serving.storage.address import Address, without_user
from mpserve.serving.storage.remote import Changed, RemoteFile, Report, append, local_path, persist, size_of
from mpserve.version import VERSION

TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 20

_PASSING = {408, 425, 429, 500, 502, 503, 504}  # statuses that may be others a moment later
_MEANINGS = {
    401: "it asks for credentials, such as https://USER:PASSWORD@HOST/",
    403: "access is denied; a signed address may be too old",
    404: "there is no such file",
    410: "there is no such file any more",
}


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect from TLS to a connection without TLS."""

    def __init__(self, shown: str) -> None:
        self._shown = shown

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.type == "https" and not newurl.lower().startswith("https:"):
            raise ConfigurationError(f"{self._shown} redirects to a connection without TLS")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class WebFile:
    """The file of an ``https://`` address."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._url, user = without_user(address.url)
        self._login = base64.b64encode(unquote(user).encode()).decode() if user else ""
        self._open = urllib.request.build_opener(_Redirects(address.shown)).open
        self._first: http.client.HTTPResponse | None = None  # the reply to ``look``, whose body is not yet read

    def look(self) -> list[RemoteFile]:
        found: list[RemoteFile] = []

        def ask() -> None:
            self._first = self._ask({})
            found.append(self._described(self._first))

        self._persist(ask, lambda: 0)
        if found[0].size is None and not self._address.sha256:
            raise ConfigurationError(
                f"{self._address.shown}: the server does not say how long the file is, so that a part cannot be told from"
                " the whole; expected a Content-Length, or an address that ends in #sha256=DIGEST"
            )
        return found

    def copy(self, files: Sequence[RemoteFile], folder: Path, report: Report) -> None:
        [file] = files
        target = local_path(folder, file, self._address.name)
        append(target, b"", size_of(target))
        self._persist(lambda: self._go_on(file, target, report), lambda: size_of(target))

    def is_md5(self, file: RemoteFile) -> bool:
        return True

    def _go_on(self, file: RemoteFile, target: Path, report: Report) -> None:
        here = size_of(target) if file.tag and not file.tag.startswith("W/") else 0
        if file.size is not None and here >= file.size and here:
            return
        with self._from(file, here) as reply:
            if reply.status != http.client.PARTIAL_CONTENT:
                here = 0
                append(target, b"", 0)
            while chunk := reply.read(CHUNK):
                append(target, chunk, here)
                here += len(chunk)
                report(here, file.size)
        if file.size is not None and here < file.size:
            raise ConnectionError(f"the connection ended after {here} of {file.size} bytes")

    def _from(self, file: RemoteFile, offset: int) -> http.client.HTTPResponse:
        """A reply with the bytes from ``offset`` on, or with all bytes if the server has no ranges. Raises Changed."""
        reply, self._first = self._first, None
        if reply is not None and offset == 0:
            return reply
        if reply is not None:
            reply.close()
        reply = self._ask({"Range": f"bytes={offset}-", "If-Range": file.tag} if offset else {})
        if reply.status == http.client.PARTIAL_CONTENT:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", reply.headers.get("Content-Range", ""))
            same = span is not None and int(span[1]) == offset and span[2] in ("*", str(file.size))
            if not same or _tag(reply) not in ("", file.tag):
                raise Changed
        elif self._described(reply) != file:
            raise Changed
        return reply

    def _ask(self, headers: dict[str, str]) -> http.client.HTTPResponse:
        request = urllib.request.Request(
            self._url, headers={"User-Agent": f"mpserve/{VERSION}", "Accept-Encoding": "identity", **headers}
        )
        if self._login:
            request.add_unredirected_header("Authorization", f"Basic {self._login}")
        reply: http.client.HTTPResponse = self._open(request, timeout=TIMEOUT)
        return reply

    def _described(self, reply: http.client.HTTPResponse) -> RemoteFile:
        coding = reply.headers.get("Content-Encoding", "identity")
        if coding != "identity" and not self._address.name.endswith(("gz", "zip")):
            raise ConfigurationError(
                f"{self._address.shown}: the server sends the file in the coding {coding}, expected none"
            )
        length = reply.headers.get("Content-Length")
        return RemoteFile("", int(length) if length is not None else None, _tag(reply), _md5(reply))

    def _persist(self, attempt: Any, there: Any) -> None:
        try:
            persist(attempt, there, _is_transient)
        except urllib.error.HTTPError as error:
            if error.code in (412, 416):
                raise Changed from None
            meaning = _MEANINGS.get(error.code, str(error.reason))
            raise ConfigurationError(f"{self._address.shown}: the server answers {error.code}: {meaning}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise ConfigurationError(f"{self._address.shown} cannot be fetched: {reason}") from None


def _is_transient(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code in _PASSING
    if isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError):
        return False
    return isinstance(error, OSError | http.client.HTTPException) and not isinstance(error, http.client.InvalidURL)


def _tag(reply: http.client.HTTPResponse) -> str:
    return reply.headers.get("ETag") or reply.headers.get("Last-Modified") or ""


def _md5(reply: http.client.HTTPResponse) -> str:
    """The MD5 that the server tells, by ``Content-MD5``, or as the ETag of S3 if that is one."""
    told = reply.headers.get("Content-MD5")
    if told:
        return base64.b64decode(told).hex()
    is_s3 = (
        "x-amz-request-id" in reply.headers and "x-amz-server-side-encryption-customer-algorithm" not in reply.headers
    )
    if not is_s3 or reply.headers.get("x-amz-server-side-encryption", "AES256") != "AES256":
        return ""
    tag = (reply.headers.get("ETag") or "").strip('"')
    return tag if re.fullmatch("[0-9a-f]{32}", tag) else ""
