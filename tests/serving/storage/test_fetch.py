"""Models are fetched from a real web server: resumed, checked, kept, and never half there."""

import hashlib
import io
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from mpserve.errors import ConfigurationError
from mpserve.serving.storage.archive import unpack
from mpserve.serving.storage.fetch import path_of
from tests.cases import each
from tests.running import eventually
from tests.storages import Web, web

pytestmark = pytest.mark.e2e

CONTENT = bytes(range(256)) * 40_000  # 10 MB: longer than what sockets hold


@pytest.fixture
def site() -> Iterator[Web]:
    with web() as served:
        served.files["/m/iris.bin"] = CONTENT
        yield served


def kept(cache: Path) -> list[str]:
    """The files in a cache, below the folders of their contents."""
    files = [path for path in cache.rglob("*") if path.is_file() and path.name != "lock"]
    return sorted("/".join(path.parts[len(cache.parts) + 2 :]) for path in files)


def test_a_file_is_fetched_once_kept_under_its_name_and_fetched_again_when_it_has_changed(
    site: Web, tmp_path: Path
) -> None:
    address = f"{site.url}/m/iris.bin"
    first = Path(path_of(address, str(tmp_path)))
    assert first.read_bytes() == CONTENT
    assert first.name == "iris.bin"
    assert path_of(address, str(tmp_path)) == str(first)
    site.files["/m/iris.bin"] = b"new"
    second = Path(path_of(address, str(tmp_path)))
    assert second.read_bytes() == b"new"
    assert first.read_bytes() == CONTENT, "a running server may still read it"
    assert not list(tmp_path.rglob("*.partial"))


def test_a_server_without_tags_is_fetched_each_time_and_one_content_is_kept_once(site: Web, tmp_path: Path) -> None:
    site.tags = False
    first = path_of(f"{site.url}/m/iris.bin", str(tmp_path))
    assert path_of(f"{site.url}/m/iris.bin", str(tmp_path)) == first
    site.files["/m/iris.bin"] = CONTENT[::-1]  # of the same length
    assert Path(path_of(f"{site.url}/m/iris.bin", str(tmp_path))).read_bytes() == CONTENT[::-1]


@each("ranges, tags", [(True, True), (False, True), (False, False)])
def test_a_broken_connection_is_resumed_or_begun_anew(
    ranges: bool, tags: bool, site: Web, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    site.ranges, site.tags, site.asked = ranges, tags, []
    site.break_after = [3_000_000, 5_000_000]
    assert Path(path_of(f"{site.url}/m/iris.bin", str(cache))).read_bytes() == CONTENT
    starts = [int(span.split("=")[1][:-1]) if span else 0 for _, _, span in site.asked]
    assert len(starts) == 3
    assert (starts == [0, 3_000_000, 8_000_000]) == ranges


def test_what_a_failed_start_has_fetched_is_not_fetched_again(site: Web, tmp_path: Path) -> None:
    address = f"{site.url}/m/iris.bin"
    site.break_after = [4_000_000]
    site.on_break = lambda: site.statuses.extend([503] * 4)
    with pytest.raises(ConfigurationError, match="503"):
        path_of(address, str(tmp_path))
    site.asked.clear()
    assert Path(path_of(address, str(tmp_path))).read_bytes() == CONTENT
    assert [span for _, _, span in site.asked] == [None, "bytes=4000000-"]


def test_a_file_that_changes_while_it_is_fetched_is_never_mixed(site: Web, tmp_path: Path) -> None:
    site.break_after = [4_000_000]
    site.on_break = lambda: site.files.update({"/m/iris.bin": CONTENT[::-1]})
    assert Path(path_of(f"{site.url}/m/iris.bin", str(tmp_path))).read_bytes() == CONTENT[::-1]
    assert kept(tmp_path) == ["iris.bin"]


def test_a_digest_in_the_address_is_checked_and_needs_no_server_when_it_is_kept(site: Web, tmp_path: Path) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    address = f"{site.url}/m/iris.bin#sha256="
    with pytest.raises(ConfigurationError, match=f"another SHA-256 than expected, {'0' * 64}"):
        path_of(address + "0" * 64, str(tmp_path))
    assert kept(tmp_path) == []
    found = path_of(address + digest, str(tmp_path))
    asked = len(site.asked)
    assert path_of(address + digest, str(tmp_path)) == found
    assert len(site.asked) == asked


def test_an_md5_that_the_server_tells_is_checked(site: Web, tmp_path: Path) -> None:
    site.headers = {"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}
    with pytest.raises(ConfigurationError, match=f"another MD5 than expected, {'0' * 32}"):
        path_of(f"{site.url}/m/iris.bin", str(tmp_path))
    assert kept(tmp_path) == []


def test_two_at_once_fetch_it_once(site: Web, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    site.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(path_of, f"{site.url}/m/iris.bin", str(tmp_path)) for _ in range(2)]
        eventually(lambda: site.asked)
        eventually(lambda: "another process is fetching" in caplog.text)
        site.gate.set()
        first, second = (each.result() for each in both)
    assert first == second
    assert Path(first).read_bytes() == CONTENT
    assert sum(span is None for _, _, span in site.asked) == 2, "the second one looks whether it has changed"
    assert kept(tmp_path) == ["iris.bin"]


def test_a_fetch_ends_with_its_parent(site: Web, tmp_path: Path) -> None:
    """And the next one goes on."""
    site.gate.clear()
    program = (
        f"from mpserve.serving.storage.fetch import path_of; path_of({site.url + '/m/iris.bin'!r}, {str(tmp_path)!r})"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        eventually(lambda: site.asked)
        [child] = psutil.Process(parent.pid).children()
        parent.kill()
    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    site.gate.set()
    assert Path(path_of(f"{site.url}/m/iris.bin", str(tmp_path))).read_bytes() == CONTENT


def zipped(*members: tuple[str, bytes], mode: int = stat.S_IFREG) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode | 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return packed.getvalue()


def tarred(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


@each("name, packed", [
    ("iris.zip", zipped(("model.py", b"x = 1"), ("data/a.bin", b"a"))),
    ("iris.tar.gz", tarred(("./model.py", b"x = 1"), ("./data/a.bin", b"a"))),
    ("iris.TGZ", tarred(("model.py", b"x = 1"), ("data/a.bin", b"a"))),
])  # fmt: skip
def test_an_archive_becomes_a_folder(
    name: str, packed: bytes, site: Web, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    site.files[f"/{name}"] = packed
    folder = Path(path_of(f"{site.url}/{name}", str(cache)))
    assert folder.name == "iris"
    assert kept(cache) == ["iris/data/a.bin", "iris/model.py"]
    assert path_of(f"{site.url}/{name}", str(cache)) == str(folder)


@each("name, packed, words", [
    ("a.zip", zipped(("../out", b"")), "does not stay within its folder"),
    ("a.zip", zipped(("/out", b"")), "does not stay within its folder"),
    ("a.zip", zipped(("a\\..\\out", b"")), "does not stay within its folder"),
    ("a.zip", zipped(("out", b"/etc/passwd"), mode=stat.S_IFLNK), "a link or a device"),
    ("a.zip", zipped(("bomb", bytes(100_000_000))), "expands to more than 200 times"),
    ("a.zip", b"no archive", "cannot be unpacked"),
    ("a.zip", zipped(("a", b"1"), ("./a", b"2")), "one name twice"),
    ("a.tar.gz", tarred(("x/../../out", b"")), "does not stay within its folder"),
    ("a.tar.gz", tarred(("/out", b"")), "does not stay within its folder"),
    ("a.tar.gz", tarred(("out", b""), kind=tarfile.SYMTYPE, link="/etc"), "a link or a device"),
    ("a.tar.gz", tarred(("out", b""), kind=tarfile.LNKTYPE, link="/etc/passwd"), "a link or a device"),
    ("a.tar.gz", tarred(("out", b""), kind=tarfile.FIFOTYPE), "a link or a device"),
    ("a.tar.gz", tarred(("bomb", bytes(100_000_000))), "expands to more than 200 times"),
    ("a.tar.gz", tarred(("model.py", b"x = 1"))[:-12], "cannot be unpacked"),
])  # fmt: skip
def test_an_unsafe_archive_is_refused(
    name: str, packed: bytes, words: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("unpacked")
    (folder / name).write_bytes(packed)
    with pytest.raises(ConfigurationError, match=words):
        unpack(folder / name, folder / "x" / "y")
    assert not list(folder.rglob("out"))


def test_a_refused_archive_is_not_served_when_it_is_asked_for_again(site: Web, tmp_path: Path) -> None:
    site.files["/a.zip"] = zipped(("model.py", b"x = 1"), ("../out", b""))
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="does not stay within its folder"):
            path_of(f"{site.url}/a.zip", str(tmp_path))
    assert kept(tmp_path) == ["a.zip"]  # in a partial content


@each("status, words", [(401, "asks for credentials"), (403, "access is denied"), (404, "no such file"), (418, "418")])
def test_a_refusal_is_told_without_the_secrets_of_the_address(
    status: int, words: str, site: Web, tmp_path: Path
) -> None:
    site.statuses = [status]
    host = site.url.removeprefix("http://")
    with pytest.raises(ConfigurationError, match=words) as refused:
        path_of(f"http://someone:pass%20word@{host}/m/iris.bin?X-Amz-Signature=c0ffee&user=someone", str(tmp_path))
    text = str(refused.value)
    assert f"http://{host}/m/iris.bin" in text
    assert not any(secret in text for secret in ("someone", "pass", "c0ffee"))


def test_a_login_is_sent_and_a_new_signature_is_no_new_file(site: Web, tmp_path: Path) -> None:
    host = site.url.removeprefix("http://")
    first = path_of(f"http://someone:pass%20word@{host}/m/iris.bin?X-Amz-Signature=1&X-Amz-Date=1", str(tmp_path))
    assert site.logins == ["Basic c29tZW9uZTpwYXNzIHdvcmQ="]
    assert path_of(f"{site.url}/m/iris.bin?X-Amz-Signature=2&X-Amz-Date=2", str(tmp_path)) == first
    assert path_of(f"{site.url}/m/iris.bin?file=2", str(tmp_path)) != first
    assert not any("someone" in str(path) for path in tmp_path.rglob("*"))


def test_a_length_that_is_unknown_needs_a_digest(site: Web, tmp_path: Path) -> None:
    site.lengths = False
    with pytest.raises(ConfigurationError, match="Content-Length, or an address that ends in #sha256="):
        path_of(f"{site.url}/m/iris.bin", str(tmp_path))
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert Path(path_of(f"{site.url}/m/iris.bin#sha256={digest}", str(tmp_path))).read_bytes() == CONTENT


def test_an_empty_file_is_a_file(site: Web, tmp_path: Path) -> None:
    site.files["/empty.py"] = b""
    assert Path(path_of(f"{site.url}/empty.py", str(tmp_path))).read_bytes() == b""


def test_a_folder_that_cannot_be_written_is_told(site: Web, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for cache in ("/proc/none", str(tmp_path / "file")):
        with pytest.raises(ConfigurationError, match=r"cannot write to .*name another folder by --cache_dir"):
            path_of(f"{site.url}/m/iris.bin", cache)
    assert site.asked == []


@each("text, path", [
    ("file:///mnt/models", "/mnt/models"),
    ("file://localhost/mnt/models/", "/mnt/models"),
    ("file:///m/model.py:Iris", "/m/model.py:Iris"),
])  # fmt: skip
def test_a_file_address_is_a_path(text: str, path: str) -> None:
    assert path_of(text, None) == path


@each("text, words", [
    ("ftp://host/file", r"expected a path, or an address that begins with s3://, gs://"),
    ("s3://", "expected more than s3://"),
    ("https:///file", "expected the name of a host"),
    ("https://[::1/file", "is not understood"),
    ("https://host/file#md5=1", "expected #sha256= and 64 hexadecimal digits"),
    ("pvc://claim/iris", "KServe mounts a claim at /mnt/pvc, and there is no /mnt/pvc/iris"),
    ("file:///x#sha256=" + "0" * 64, "this is a path"),
    ("hf://name", "expected hf://ORG/NAME or hf://ORG/NAME@REVISION"),
])  # fmt: skip
def test_a_wrong_address_is_told(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=words):
        path_of(text, str(tmp_path))
