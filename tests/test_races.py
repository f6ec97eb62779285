"""Two requests that meet in the middle: each sees the world before the other, or after it.

Nothing is left to chance: the second request runs inside the first, at the one place where it used
to hurt.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from signing_client import Client, Reply

import s3mini


@pytest.fixture
def fake() -> Iterator[s3mini.Fake]:
    with s3mini.start("media") as started:
        yield started


@pytest.fixture
def s3(fake: s3mini.Fake) -> Client:
    return client_of(fake, "media")


def client_of(fake: s3mini.Fake, bucket: str = "") -> Client:
    address = fake.endpoint.partition("//")[2]
    return Client(address, fake.access_key, fake.secret_key, bucket=bucket)


Meet = Callable[..., list[Any]]


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch) -> Meet:
    """meet(owner, name, act, times=1): calls of owner.name have act() happen before them.

    Gives the list of what act() gave. With `after`, it happens behind them.
    """

    def arrange(
        owner: Any, name: str, act: Callable[[], Any], times: int = 1, after: bool = False
    ) -> list[Any]:
        real, got = getattr(owner, name), []
        begun: list[int] = []

        def between(*args: Any, **more: Any) -> Any:
            if len(begun) >= times:
                return real(*args, **more)
            begun.append(1)
            if not after:
                got.append(act())
            result = real(*args, **more)
            if after:
                got.append(act())
            return result

        monkeypatch.setattr(owner, name, between)
        return got

    return arrange


def outcome(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.error


# -- a copy onto itself, and a PUT -----------------------------------------------------------------


def put(s3: Client, name: str, key: str = "k") -> Reply:
    """All of it tells its name."""
    reply = s3.put(key, name.encode(), {"content-type": f"x/{name}", "x-amz-meta-n": name})
    assert 200 == reply.status
    return reply


def seen(s3: Client, key: str = "k") -> tuple[bytes, str, str]:
    got = s3.get(key)
    return got.body, got.headers["content-type"], got.headers["x-amz-meta-n"]


def copy_onto_itself(s3: Client, **headers: str) -> Reply:
    sent = {"x-amz-copy-source": f"/{s3.bucket}/k"}
    return s3.put("k", b"", {**sent, **{n.replace("_", "-"): v for n, v in headers.items()}})


@pytest.mark.parametrize("way", ["tags", "checksum"])
def test_a_put_during_a_copy_onto_itself_keeps_its_own_metadata(
    s3: Client, meet: Meet, way: str
) -> None:
    put(s3, "old")
    meet(s3mini.Store, "update" if way == "tags" else "commit", lambda: put(s3, "new"))
    tags = {"x_amz_tagging_directive": "REPLACE", "x_amz_tagging": "a=1"}
    checksum = {"x_amz_checksum_algorithm": "SHA1"}
    copied = copy_onto_itself(s3, **(tags if way == "tags" else checksum))

    assert 200 == copied.status
    assert (b"new", "x/new", "new") == seen(s3)
    assert "1" == s3.head("k").headers.get("x-amz-tagging-count", "1")


def test_the_condition_of_a_copy_onto_itself_holds_for_what_it_changes(
    s3: Client, meet: Meet
) -> None:
    etag = put(s3, "old").etag
    meet(s3mini.Store, "update", lambda: put(s3, "new"))
    copied = copy_onto_itself(s3, x_amz_metadata_directive="REPLACE", content_type="x/of-old",
                              x_amz_copy_source_if_match=etag)  # fmt: skip

    assert (412, "PreconditionFailed") == outcome(copied)
    assert (b"new", "x/new", "new") == seen(s3)


def test_a_copy_onto_itself_that_always_comes_too_late_gives_up(s3: Client, meet: Meet) -> None:
    put(s3, "old")
    puts = meet(s3mini.Store, "update", lambda: put(s3, "new"), times=100)
    copied = copy_onto_itself(s3, x_amz_metadata_directive="REPLACE", content_type="x/late")

    assert (409, "OperationAborted") == outcome(copied)
    assert (b"new", "x/new", "new") == seen(s3)
    assert s3mini.ROUNDS == len(puts)
