"""Models are fetched from a real S3 server: a folder or an object, resumed, checked, and told in words."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpserve.errors import ConfigurationError
from mpserve.serving.storage.address import parse
from mpserve.serving.storage.buckets import CHUNK, Bucket
from mpserve.serving.storage.fetch import path_of
from mpserve.serving.storage.remote import Changed, RemoteFile
from tests.cases import each
from tests.storages import s3

pytestmark = pytest.mark.e2e

LARGE = os.urandom(1 << 20) * 20  # more than two chunks


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, dict[str, str]]]:
    with s3(tmp_path_factory.mktemp("moto")) as started:
        yield started


@pytest.fixture
def client(server: tuple[Any, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Any:
    client, environment = server
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for found in client.list_objects_v2(Bucket="models").get("Contents", []):
        client.delete_object(Bucket="models", Key=found["Key"])
    return client


def put(client: Any, **contents: bytes) -> None:
    for key, content in contents.items():
        client.put_object(Bucket="models", Key=key, Body=content)


def there(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_and_an_object_are_fetched_once_and_again_when_they_change(client: Any, tmp_path: Path) -> None:
    put(
        client,
        **{"iris/model.py": b"x = 1", "iris/data/large.bin": LARGE, "iris/": b"", "iris/empty": b"", "iris2/no": b""},
    )
    folder = Path(path_of("s3://models/iris", str(tmp_path)))
    assert folder.name == "iris"
    assert there(folder) == {"model.py": b"x = 1", "data/large.bin": LARGE, "empty": b""}
    assert path_of("s3://models/iris", str(tmp_path)) == str(folder)
    put(client, **{"iris/model.py": b"x = 2"})
    changed = Path(path_of("s3://models/iris/", str(tmp_path)))
    assert there(changed)["model.py"] == b"x = 2"
    file = path_of("s3://models/iris/model.py:Iris", str(tmp_path))
    assert file.endswith("/model.py:Iris")
    assert Path(file.removesuffix(":Iris")).read_bytes() == b"x = 2"


def test_a_large_object_of_several_parts_has_no_md5_and_is_fetched(client: Any, tmp_path: Path) -> None:
    upload = client.create_multipart_upload(Bucket="models", Key="large.bin")["UploadId"]
    parts = [
        {"PartNumber": number, "ETag": client.upload_part(Bucket="models", Key="large.bin", UploadId=upload,
                                                           PartNumber=number, Body=LARGE)["ETag"]}
        for number in (1, 2)
    ]  # fmt: skip
    client.complete_multipart_upload(
        Bucket="models", Key="large.bin", UploadId=upload, MultipartUpload={"Parts": parts}
    )
    assert Path(path_of("s3://models/large.bin", str(tmp_path))).read_bytes() == LARGE * 2


def bucket(client: Any) -> Bucket:
    return Bucket(parse("s3://models/iris"), endpoint_url=client.meta.endpoint_url, key="loopback", secret="-" * 16)


def test_what_is_there_is_not_fetched_again(client: Any, tmp_path: Path) -> None:
    put(client, **{"iris/large.bin": LARGE, "iris/small": b"small"})
    (tmp_path / "iris").mkdir()
    (tmp_path / "iris" / "large.bin").write_bytes(
        bytes(CHUNK)
    )  # of an earlier start, with other bytes to be recognised
    done: list[int] = []
    storage = bucket(client)
    storage.copy(storage.look(), tmp_path, lambda here, total: done.append(here))
    assert there(tmp_path / "iris") == {"large.bin": bytes(CHUNK) + LARGE[CHUNK:], "small": b"small"}
    assert done == [len(LARGE) + 5]


def test_a_part_that_was_fetched_wrong_is_found_by_the_md5_and_not_kept(client: Any, tmp_path: Path) -> None:
    put(client, **{"iris/large.bin": LARGE})
    kept = Path(path_of("s3://models/iris", str(tmp_path)))
    partial = kept.parent.with_name(f"{kept.parent.name}.partial")
    kept.parent.rename(partial)
    file = partial / "iris" / "large.bin"
    file.write_bytes(bytes(CHUNK))
    with pytest.raises(
        ConfigurationError, match=r"s3://models/iris/large\.bin was fetched with another MD5 than expected"
    ):
        path_of("s3://models/iris", str(tmp_path))
    assert not partial.exists()
    assert there(Path(path_of("s3://models/iris", str(tmp_path)))) == {"large.bin": LARGE}


def test_an_etag_of_an_encrypted_object_is_no_md5(client: Any) -> None:
    client.put_object(Bucket="models", Key="iris/plain", Body=b"1")
    client.put_object(Bucket="models", Key="iris/kms", Body=b"1", ServerSideEncryption="aws:kms")
    storage = bucket(client)
    certain = {file.path: storage.is_md5(file) for file in storage.look()}
    assert certain == {"plain": True, "kms": False}


def test_an_object_that_changes_while_it_is_fetched_is_noticed(client: Any, tmp_path: Path) -> None:
    put(client, **{"iris/large.bin": LARGE, "iris/small": b"small"})
    storage = bucket(client)
    with pytest.raises(Changed):
        storage.copy(storage.look(), tmp_path, lambda here, total: put(client, **{"iris/small": b"other"}))


@each("key", ["iris/../../out", "iris//out", "iris/./out"])
def test_a_key_that_leads_out_of_the_folder_is_refused(key: str, client: Any, tmp_path: Path) -> None:
    class Listed(Bucket):
        """The client of S3 may mend such a key on its way to the server."""

        def look(self) -> list[RemoteFile]:
            return [RemoteFile(key.removeprefix("iris/"), 1, "tag")]

    storage = Listed(parse("s3://models/iris"), endpoint_url=client.meta.endpoint_url, key="loopback", secret="-" * 16)
    with pytest.raises(ConfigurationError, match="cannot be kept as a file"):
        storage.copy(storage.look(), tmp_path, lambda here, total: None)


def test_a_failure_is_told_in_words(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("s3://models/none", "s3://nobucket/none"):
        with pytest.raises(ConfigurationError, match=rf"{address}: there is nothing"):
            path_of(address, str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"gs://models/iris needs gcsfs.*pip install 'mpserve\[gcs\]'"):
        path_of("gs://models/iris", str(tmp_path))
    put(client, **{"iris/a": b"a", "iris/b": b"b"})
    with pytest.raises(ConfigurationError, match="is a folder, and #sha256= is the digest of one file"):
        path_of("s3://models/iris#sha256=" + "0" * 64, str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        ConfigurationError, match=r"there are no credentials; for a public bucket set FSSPEC_S3_ANON=true"
    ):
        path_of("s3://models/iris", str(tmp_path))
    monkeypatch.setenv("FSSPEC_S3_ANON", "true")
    with pytest.raises(ConfigurationError, match=r"s3://models/iris: access is denied \(403\)"):
        path_of("s3://models/iris", str(tmp_path))
