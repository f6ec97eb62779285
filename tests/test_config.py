"""buckets.ini: every mistake is one sentence with file, line, section and what to do."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PROGRAM, Serve
from signing_client import Client

import s3mini

GOOD = "[media]\naccess_key = k\nsecret_key = s\n"


def load(folder: Path, text: str) -> s3mini.Config:
    path = folder / "buckets.ini"
    path.write_text(text, encoding="utf-8")
    return s3mini.load_config(str(path))


def mistake(folder: Path, text: str) -> str:
    """What is said of it."""
    with pytest.raises(s3mini.ConfigError) as caught:
        load(folder, text)
    return str(caught.value)


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(
        command,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


# The text, the line that must be named, and what else the sentence must say.
MISTAKES: dict[str, tuple[str, int, list[str]]] = {
    "near option": (GOOD + "pubic = read\n", 4, ["[media]", "'pubic'", "did you mean public?"]),
    "near key": ("[media]\nacces_key = k\n", 2, ["'acces_key'", "did you mean access_key?"]),
    "comment in a list": (
        GOOD + "public = images/\n    # styles\n    css/\n",
        6,
        ["a comment ends the value above it; take it away"],
    ),
    "empty line in a list": (GOOD + "public = images/\n\n    css/\n", 6, ["an empty line"]),
    "no value below a comment": (
        "[media]\n# of the site\n\n  acces_key k\n",
        4,
        ["neither [section] nor option = value"],
    ),
    "far option": (GOOD + "zzz = 1\n", 4, ["[media]", "unknown option 'zzz'"]),
    "near in SERVER": ("[SERVER]\nlissten = x\n" + GOOD, 2, ["[SERVER]", "did you mean listen?"]),
    "near in DEFAULT": (GOOD + "[DEFAULT]\npubli = no\n", 5, ["[DEFAULT]", "did you mean public?"]),
    "bucket option in SERVER": (
        "[SERVER]\naccess_key = k\n" + GOOD,
        2,
        ["'access_key' in [SERVER] belongs in a bucket's section", "[media]", "move"],
    ),
    "server option in bucket": (
        GOOD + "listen = a:1\n",
        4,
        ["'listen' in [media] belongs in [SERVER]; move"],
    ),
    "server option in DEFAULT": (
        GOOD + "[DEFAULT]\nlog = none\n",
        5,
        ["'log' in [DEFAULT] belongs in [SERVER]"],
    ),
    "second of two": (
        GOOD + "[b23]\naccess_key = x\nsecret_key = y\nmod = read\n",
        7,
        ["[b23]", "mode?"],
    ),
    "listen": ("[SERVER]\nlisten = 9000\n" + GOOD, 2, ["listen", "'9000'", "127.0.0.1:9000"]),
    "listen port": ("[SERVER]\nlisten = a:99999\n" + GOOD, 2, ["'a:99999'"]),
    "listen empty": ("[SERVER]\nlisten =\n" + GOOD, 2, ["no address"]),
    "listen nothing": ("[SERVER]\nlisten = ,\n" + GOOD, 2, ["no address"]),
    "domain with a port": (
        "[SERVER]\ndomain = s3.localhost:9000\n" + GOOD, 2, ["s3.localhost:9000", "port"]
    ),
    "hosts": (
        "[SERVER]\nhosts = https://x.de\n" + GOOD,
        2,
        ["'https://x.de'", "media.example.com"],
    ),
    "workers": ("[SERVER]\nworkers = many\n" + GOOD, 2, ["workers", "'many'", "auto nor a whole"]),
    "workers 0": ("[SERVER]\nworkers = 0\n" + GOOD, 2, ["workers", "'0'"]),
    "durability": ("[SERVER]\ndurability = yes\n" + GOOD, 2, ["'yes'", "disk, none"]),
    "min_free": ("[SERVER]\n\nmin_free = 5 %\n" + GOOD, 3, ["'5 %'", "500M"]),
    "max_connections": ("[SERVER]\nmax_connections = -1\n" + GOOD, 2, ["'-1'"]),
    "expire_uploads": ("[SERVER]\nexpire_uploads = 1w\n" + GOOD, 2, ["'1w'", "7d"]),
    "log": ("[SERVER]\nlog = verbose\n" + GOOD, 2, ["'verbose'", "text, json, none"]),
    "mode": (GOOD + "mode = rw\n", 4, ["mode in [media]", "'rw'", "full, read, write, append"]),
    "public": (GOOD + "public = images\n", 4, ["'images'", "images/"]),
    "cors": (GOOD + "cors = example.com\n", 4, ["'example.com'", "https://app.example.com"]),
    "acl": (GOOD + "acl = maybe\n", 4, ["'maybe'", "yes nor no"]),
    "upper case": ("[Media]\naccess_key = k\n", 1, ["[Media]", "a-z 0-9"]),
    "server in lower case": ("[server]\nlisten = a:1\n", 1, ["[server]", "SERVER"]),
    "too short": (GOOD + "[ab]\naccess_key = x\nsecret_key = y\n", 4, ["[ab]", "3 to 63"]),
    "too long": (f"[{'a' * 64}]\n", 1, ["3 to 63"]),
    "an address": ("[192.168.1.1]\naccess_key = x\nsecret_key = y\n", 1, ["[192.168.1.1]"]),
    "a path": ("[../etc]\naccess_key = x\nsecret_key = y\n", 1, ["[../etc]"]),
    "no secret": ("[media]\naccess_key = k\n", 1, ["[media]", "no secret_key", "add"]),
    "no access key": ("[media]\nsecret_key = k\n", 1, ["[media]", "no access_key", "add"]),
    "no key": ("[media]\n", 1, ["[media]", "no access_key", "add"]),
    "no key for a pattern": ("[*]\npublic = read\n", 1, ["[*]", "no access_key", "add"]),
    "no key for a second section": (GOOD + "[media:ci]\nmode = read\n", 4, ["[media:ci]", "add"]),
    "a space in a key": (
        "[media]\naccess_key = a b\nsecret_key = s\n",
        2,
        ["access_key", "[media]"],
    ),
    "a slash in a key": (
        "[media]\naccess_key = a/b\nsecret_key = s\n",
        2,
        ["access_key", "[media]"],
    ),
    "two secrets": (
        GOOD + "[b23]\naccess_key = k\nsecret_key = t\n",
        6,
        ["[b23]", "'k'", "one secret"],
    ),
    "no environment": (
        "[media]\naccess_key = k\nsecret_key = env:S3MINI_NOT_SET\n",
        3,
        ["secret_key in [media]", "'S3MINI_NOT_SET' is not set; set it"],
    ),
    "no file": (
        "[media]\naccess_key = k\nsecret_key = file:nowhere\n",
        3,
        ["secret_key in [media]", "/nowhere: No such file or directory; let it"],
    ),
    "a file without a secret": (
        "[media]\naccess_key = k\nsecret_key = file:/dev/null\n",
        3,
        ["secret_key in [media]", "/dev/null is empty; write"],
    ),
    "path for all": ("[DEFAULT]\npath = /srv\n" + GOOD, 2, ["path", "of its own"]),
    "path of a pattern": (
        "[t-*]\naccess_key = k\nsecret_key = s\npath = /srv\n",
        4,
        ["path", "[t-*]"],
    ),
    "section twice": (GOOD + "[media]\naccess_key = x\n", 4, ["media"]),
    "option twice": (GOOD + "access_key = x\n", 4, ["access_key", "media"]),
    "indented": ("  [media]\n  access_key = k\n  acces_key = k\n", 3, ["'acces_key'"]),
    "indented further": (
        "[media]\n  access_key = k\n  secret_key = s\n\n    pubic = read\n",
        5,
        ["'pubic'"],
    ),
    "indented below a comment": (
        "[media]\naccess_key = k\nsecret_key = s\npublic = no\n# a comment\n  mode = rw\n",
        6,
        ["'rw'"],
    ),
    "behind a comment with what else ends lines": (
        GOOD + "# a\x0cb\x85c\u2028d\npubic = read\n",
        5,
        ["pubic", "[media]", "public"],
    ),
    "a value of several lines": (
        "[media]\naccess_key = k\nsecret_key = s\npublic = a/\n  mode = rw/\nmode = rw\n",
        6,
        ["'rw'"],
    ),
    "an option that an indent joins to the one above": (
        "[media]\naccess_key = k\n  secret_key = s\n",
        2,
        ["access_key in [media]", "line below", "left"],
    ),
    "inherited": (
        "[media]\n[DEFAULT]\n  access_key = a b\nsecret_key = s\n",
        3,
        ["access_key in [DEFAULT]"],
    ),
    "inherited secret": (
        "[DEFAULT]\naccess_key = k\nsecret_key = env:S3MINI_NOT_SET\n[media]\n",
        3,
        ["S3MINI_NOT_SET"],
    ),
    "an option of one more key": (
        GOOD + "[media:ci]\naccess_key = x\nsecret_key = y\npublic = read\n",
        7,
        ["public in [media:ci]", "no effect", "move public into [media]"],
    ),
    "an option of one more key that comes first": (
        "[media:ci]\naccess_key = x\nsecret_key = y\nquota = 5G\n" + GOOD,
        4,
        ["quota in [media:ci]", "into [media]"],
    ),
    "an option of the same key once more": (
        "[t-*]\naccess_key = k\nsecret_key = s\n"
        "[t-*:b]\naccess_key = k\nsecret_key = s\nmode = read\nkeep = 7d\n",
        8,
        ["keep in [t-*:b]", "into [t-*]"],
    ),
    "one more key for a typing error": (
        GOOD + "[meda:ci]\naccess_key = x\nsecret_key = y\n",
        4,
        ["[meda:ci]", "[meda]", "did you mean media?"],
    ),
    "one more key without a name": (
        GOOD + "[media:]\naccess_key = x\nsecret_key = y\n",
        4,
        ["[media:]", "[media:NAME]"],
    ),
    "one more key with two names": (
        GOOD + "[media:x:y]\naccess_key = x\nsecret_key = y\n",
        4,
        ["[media:x:y]", "[media:NAME]"],
    ),
    "a prefix with a slash before it": (
        GOOD + "public = css/ /images/\n",
        4,
        ["public in [media]", "'/images/'", "write images/"],
    ),
    "a folder that is not there": (
        GOOD + "path = nowhere/media\n",
        4,
        ["path in [media]", "/nowhere/media", "make it, or mount"],
    ),
    "a folder that is a file": (GOOD + "path = buckets.ini\n", 4, ["path in [media]", "no folder"]),
    "a folder of two buckets": (
        GOOD + "path = .\n[b23]\naccess_key = x\nsecret_key = y\npath = ../{name}/.\n",
        8,
        ["path in [b23]", "[media]", "of its own"],
    ),
    "a folder of a bucket in the data folder": (
        "[SERVER]\ndata = ..\n[b23]\naccess_key = x\nsecret_key = y\npath = .\n"
        "[{name}]\naccess_key = k\nsecret_key = s\n",
        6,
        ["path in [b23]", "[{name}]"],
    ),
    "a bucket around another": (
        GOOD + "path = .\n[b23]\naccess_key = x\nsecret_key = y\npath = /tmp\n",
        4,
        ["[media] would hold", "buckets.ini", "private", "another path"],
    ),
    "a bucket around the data folder": (
        "[SERVER]\ndata = /usr/share\n[bbb]\naccess_key = x\nsecret_key = y\npath = /usr\n",
        6,
        ["[bbb] would hold /usr/share", "data folder"],
    ),
    "a bucket around a bucket": (
        "[bbb]\naccess_key = x\nsecret_key = y\npath = /usr/share\n"
        "[ccc]\naccess_key = x\nsecret_key = y\npath = /usr\n",
        8,
        ["[ccc] would hold /usr/share", "[bbb]"],
    ),
    "a key without its certificate": (
        "[SERVER]\ntls_key = key.pem\n" + GOOD, 2, ["tls_key in [SERVER]", "add tls_cert"]),
    "a bucket around the server's key": (
        "[SERVER]\ntls_cert = /usr/share/c.pem\n[bbb]\naccess_key = x\nsecret_key = y\n"
        "path = /usr\n",
        6,
        ["[bbb] would hold /usr/share/c.pem", "private"],
    ),
    "a star in public": (GOOD + "public = images/*\n", 4, ["'images/*'", "like images/"]),
    "a star within public": (GOOD + "public = images/*.jpg\n", 4, ["'images/*.jpg'", "no pattern"]),
    "an origin with a path": (
        GOOD + "cors = https://app.example.com/\n", 4, ["slash", "write https://app.example.com"]),
    "a port alone": ("[SERVER]\nlisten = :9000\n" + GOOD, 2, ["':9000'", "write 0.0.0.0:9000"]),
    "too many workers": ("[SERVER]\nworkers = 100\n" + GOOD, 2, ["'100'", "1 to 99"]),
    "quotes": (GOOD + 'public = "images/"\n', 4, ["public in [media]", "quotes", "away"]),
    "quotes in a list": (GOOD + 'public = "images/" css/\n', 4, ["public in [media]", "quotes"]),
    "quotes in the lines of a list": (GOOD + "public = a/\n    'b/'\n", 4, ["quotes"]),
    "quotes around a key": (
        "[media]\naccess_key = 'k'\nsecret_key = s\n", 2, ["access_key in [media]", "quotes"]),
    "a comment behind a secret": (
        "[DEFAULT]\nsecret_key = wonderful  # note\n[media]\naccess_key = k\n",
        2,
        ["secret_key in [DEFAULT]", "comment", "line of its own", "secret_key = file:PATH"],
    ),
    "a NUL in a path": (GOOD + "path = /srv/a\0b\n", 4, ["path in [media]", "there is no folder"]),
    "a comment behind a folder": (
        "[SERVER]\ndata = /srv/s3  # note\n" + GOOD, 2, ["data in [SERVER]", "line of its own"]),
    "a comment behind a choice": (
        GOOD + "public = read ; note\n", 4, ["public in [media]", "line of its own"]),
    "a file in capitals": (
        "[media]\naccess_key = k\nsecret_key = FILE:/etc/x\n",
        3,
        ["secret_key in [media]", "write file: in small letters"],
    ),
    "a variable in capitals": (
        "[media]\naccess_key = k\nsecret_key = Env:X\n", 3, ["write env: in small letters"]),
    "a domain with a dot before it": (
        "[SERVER]\ndomain = .s3.localhost\n" + GOOD, 2, ["'.s3.localhost'", "write s3.localhost"]
    ),
    "a domain that is a dot": (
        "[SERVER]\ndomain = .\n" + GOOD, 2, ["'.' begins with a dot; write s3.example.com"]),
    "no data folder": ("[SERVER]\ndata =\n" + GOOD, 2, ["data in [SERVER]", "s3mini-data"]),
    "a key that is no ASCII": (
        "[media]\naccess_key = ä\nsecret_key = s\n", 2, ["in [media]: it is ASCII", "choose"]),
    "nothing": ("", 1, ["no bucket", "[media]", "access_key"]),
    "no bucket": ("# my buckets\n[SERVER]\nlisten = a:1\n", 1, ["no bucket", "[media]"]),
    "no section": ("access_key = x\n", 1, ["section"]),
    "no equals sign": (GOOD + "public\n", 4, ["public"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_with_its_place(tmp_path: Path, name: str) -> None:
    text, line, words = MISTAKES[name]
    folder = tmp_path / "a-folder"  # which is a bucket's name too
    folder.mkdir()
    said = mistake(folder, text.replace("{name}", folder.name))
    words = [word.replace("{name}", folder.name) for word in words]

    assert said.startswith(f"{folder}/buckets.ini line {line}: "), said
    assert "\n" not in said
    assert [] == [word for word in words if word not in said], said


@pytest.mark.parametrize(
    "option",
    ["listen", "hosts", "domain", "workers", "durability", "min_free", "max_connections", "log",
     "expire_uploads", "trust_proxy", "mode", "public", "cors", "acl", "html", "quota", "keep"],
)  # fmt: skip
@pytest.mark.parametrize("secret", ["wJalrXUtnFEMI+K7MDENG", "it's-a 'quoted' \"long\" secret"])
def test_a_long_value_is_not_said_as_it_may_be_a_secret(
    tmp_path: Path, option: str, secret: str
) -> None:
    known = {o.name: o.scope for o in s3mini.OPTIONS}
    head = "[SERVER]\n" if known[option] == "server" else GOOD
    said = mistake(tmp_path, f"{head}{option} = {secret}\n")

    assert f"{option} in [" in said
    assert not any(word in said for word in (secret, *re.findall("[A-Za-z0-9]{6,}", secret)))


def test_a_secret_in_the_place_of_a_name_is_not_said(tmp_path: Path) -> None:
    secret = "wjalrxutnfemi-k7mdeng"
    texts = [
        GOOD + f"{secret} = x\n",
        f"[SERVER]\n{secret} = x\n",
        f"[media]\naccess_key = {secret}\nsecret_key = k\n"
        f"[b23]\naccess_key = {secret}\nsecret_key = q\n",
    ]

    assert not any(secret in mistake(tmp_path, text) for text in texts)


@pytest.mark.parametrize("value", [" ", "\t\n", ""])
def test_blanks_are_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("S3MINI_TEST_SECRET", value)
    (tmp_path / "secret").write_text(value)

    said = mistake(tmp_path, "[media]\naccess_key = a\nsecret_key = env:S3MINI_TEST_SECRET\n")
    assert "line 3: secret_key in [media]: the environment variable" in said
    said = mistake(tmp_path, "[media]\naccess_key = a\nsecret_key = file:secret\n")
    assert "secret is empty; write the secret into it" in said


def test_a_secret_is_never_in_a_sentence(tmp_path: Path) -> None:
    first, second = "open-sesame-1", "open-sesame-2"
    texts = [
        f"[media]\naccess_key = k\nsecret_key = {first}\n"
        f"[b23]\naccess_key = k\nsecret_key = {second}\n",
        f"[media]\naccess_key = a b\nsecret_key = {first}\n",
        f"[media]\nsecret_key = {first}\n",
    ]

    assert not any(
        secret in mistake(tmp_path, text) for text in texts for secret in (first, second)
    )
    assert first not in repr(load(tmp_path, f"[media]\naccess_key = k\nsecret_key = {first}\n"))


def test_a_file_of_windows_with_a_bom_is_read(tmp_path: Path) -> None:
    path = tmp_path / "buckets.ini"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())

    assert {"k": "s"} == s3mini.load_config(str(path)).secrets


def test_a_file_that_is_not_utf8_says_so(tmp_path: Path) -> None:
    path = tmp_path / "buckets.ini"
    for data in (GOOD.encode("utf-16"), b"# caf\xe9\n" + GOOD.encode()):
        path.write_bytes(data)
        with pytest.raises(s3mini.ConfigError, match=re.escape(str(path)) + ".*UTF-8"):
            s3mini.load_config(str(path))


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(s3mini.ConfigError, match=r"nowhere\.ini.*--config"):
        s3mini.load_config(str(tmp_path / "nowhere.ini"))


def test_the_defaults_of_all_buckets(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "[DEFAULT]\nmode = read\npublic = images/\n"
        + GOOD
        + "[b23]\naccess_key = x\nsecret_key = y\nmode = full\n",
    )
    media, other = config.sections

    assert ("read", ("images/",)) == (media.mode, media.public)
    assert ("full", ("images/",)) == (other.mode, other.public)


def test_a_file_with_nothing_but_a_bucket_has_good_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)

    assert ("127.0.0.1:9000",) == config.listen
    assert ("disk", 100 * 1024**2, str(tmp_path / "s3mini-data")) == (
        config.durability,
        config.min_free,
        config.data,
    )
    assert ("full", (), (), "") == tuple(
        getattr(config.sections[0], name) for name in ("mode", "public", "cors", "path")
    )


def test_values_are_read_as_they_are_meant(tmp_path: Path) -> None:
    (tmp_path / "srv").mkdir()
    config = load(
        tmp_path,
        "[SERVER]\nlisten = [::]:80, unix:/run/x, 127.0.0.1:0\n"
        "min_free = 5 GB\nexpire_uploads = 12h\n"
        "data = ../d\nhosts = A.example.com, box:9000\ndomain = s3.a.com\n  s3.b.com\n"
        "[media]\naccess_key = k\nsecret_key = a%b;c#d = e\n"
        "public = images/, css/\ncors = *\npath = srv\n",
    )

    assert ("[::]:80", "unix:/run/x", "127.0.0.1:0") == config.listen
    assert (5 * 1024**3, 12 * 3600) == (config.min_free, config.expire_uploads)
    assert str(tmp_path.parent / "d") == config.data
    assert ("a.example.com", "box:9000") == config.hosts
    assert ("s3.a.com", "s3.b.com") == config.domain
    assert "a%b;c#d = e" == config.sections[0].secret_key
    assert (("images/", "css/"), ("*",), str(tmp_path / "srv")) == (
        config.sections[0].public,
        config.sections[0].cors,
        config.sections[0].path,
    )


def test_an_origin_is_what_browsers_send_however_it_is_written(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD + "cors = https://App.Example.com\n")

    assert ("https://app.example.com",) == config.sections[0].cors


def test_a_secret_may_stand_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("from a file\n")
    monkeypatch.setenv("S3MINI_TEST_SECRET", "from outside\n")
    config = load(
        tmp_path,
        "[media]\naccess_key = a\nsecret_key = env:S3MINI_TEST_SECRET\n"
        f"[media:b]\naccess_key = b\nsecret_key = file:{tmp_path}/secret\n"
        "[media:c]\naccess_key = c\nsecret_key = file:secret\n",
    )

    assert {"a": "from outside", "b": "from a file", "c": "from a file"} == config.secrets


def test_a_secret_from_a_file_signs(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("wonderful\n")
    server = serve(
        f"[media]\naccess_key = k\nsecret_key = file:{tmp_path}/secret\n", durability="none"
    )

    assert 200 == Client(server.address, "k", "wonderful", bucket="media").put("k", b"x").status


# -- what the program does with it -----------------------------------------------------------------


@pytest.mark.parametrize("command", ["serve", "config"])
def test_a_mistake_ends_the_program_with_2_and_one_line(tmp_path: Path, command: str) -> None:
    path = tmp_path / "buckets.ini"
    path.write_text(GOOD + "pubic = read\n")
    path.chmod(0o600)
    done = run(command, "--config", str(path))

    assert (2, "") == (done.returncode, done.stdout)
    assert f"s3mini: {path} line 4: " in done.stderr
    assert (1, True) == (done.stderr.count("\n"), done.stderr.endswith("\n"))


def test_a_good_file_is_called_good(tmp_path: Path) -> None:
    path = tmp_path / "buckets.ini"
    path.write_text(GOOD + "public = read\n[test-*]\naccess_key = x\nsecret_key = hidden-secret\n")
    done = run("config", "--config", str(path))

    assert (0, "") == (
        done.returncode,
        done.stderr.replace("\n", "") if "everybody" not in done.stderr else "",
    )
    assert ["[media]" in done.stdout, "[test-*]" in done.stdout, "hidden" in done.stdout] == [
        True,
        True,
        False,
    ]


def test_a_file_that_everybody_can_read_is_warned_of(serve: Serve) -> None:
    server = serve()
    assert "everybody can read" not in server.log
    server.stop()
    server.config.chmod(0o644)
    server.start()

    assert f"everybody can read {server.config}" in server.log
    assert f"chmod 640 {server.config}" in server.log


def test_config_warns_of_a_file_that_everybody_can_read(tmp_path: Path) -> None:
    path = tmp_path / "buckets.ini"
    path.write_text(GOOD)
    for mode, warned in ((0o640, ""), (0o644, f"chmod 640 {path}")):
        path.chmod(mode)
        done = run("config", "--config", str(path))

        assert 0 == done.returncode
        assert warned in done.stderr
        assert bool(warned) == bool(done.stderr)


def give(monkeypatch: pytest.MonkeyPatch, path: Path, owner: int) -> None:
    """Let the file be another user's, as chown does for root."""
    real = os.stat

    def stat(name: Any, *arguments: Any, **named: Any) -> os.stat_result:
        info = real(name, *arguments, **named)
        return os.stat_result((*info[:4], owner, *info[5:10])) if name == str(path) else info

    monkeypatch.setattr(os, "stat", stat)


@pytest.mark.parametrize(("user", "owner", "first"), [
    (1000, 1000, ""), (1000, 0, "let the server's user own it, then "),
    (0, 0, "let the server's user own it, then ")])
def test_to_do_as_it_is_warned_locks_no_server_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    user: int, owner: int, first: str,
) -> None:
    path = tmp_path / "buckets.ini"
    path.touch(0o644)
    give(monkeypatch, path, owner)
    monkeypatch.setattr(os, "geteuid", lambda: user, raising=False)
    s3mini.warn_of_readers(str(path))

    assert f" its keys; {first}chmod 640 {path}\n" in capfd.readouterr().err


@pytest.mark.parametrize(("owner", "advice"), [
    (0, "let the server's user own it"), (54321, "with `sudo -u '#54321'` before it"),
    (65534, "let the server's user own it")])  # whoever it is: PrivateUsers= hides him
def test_who_may_not_read_the_file_is_told_who_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: int, advice: str
) -> None:
    """To open the secrets to whoever runs a command is no advice."""
    path, real_open = tmp_path / "buckets.ini", open
    path.touch()
    give(monkeypatch, path, owner)

    def fake_open(name: str, *arguments: object, **named: object) -> object:
        if name == str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        return real_open(name, *arguments, **named)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", fake_open)
    with pytest.raises(s3mini.ConfigError) as caught:
        s3mini.load_config(str(path))

    assert f"cannot read {path}: Permission denied; " in str(caught.value)
    assert str(caught.value).endswith(advice)


def test_a_link_to_a_disk_that_is_not_mounted_is_named(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    Path(config.data).mkdir()
    media = Path(config.data, "media")
    media.symlink_to(tmp_path / "mnt" / "media")
    for link in (media, Path(config.data)):
        with pytest.raises(s3mini.ConfigError, match=f"{link} is a link to .*/mnt.*mount its disk"):
            s3mini.Buckets(config, s3mini.Disk(False)).prepare()
        if link == media:
            media.unlink()
            Path(config.data).rmdir()
            Path(config.data).symlink_to(tmp_path / "mnt")


def test_a_link_to_where_this_user_may_not_go_is_no_missing_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, real = load(tmp_path, GOOD), os.stat
    (tmp_path / "mnt").mkdir()
    Path(config.data).symlink_to(tmp_path / "mnt")

    def stat(path: Any, **named: Any) -> Any:
        if path == config.data:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, **named)

    monkeypatch.setattr(os, "stat", stat)

    assert [] == s3mini.Buckets(config, s3mini.Disk(False)).prepare()


@pytest.mark.parametrize("secret", ["ENV", "File", "file:", "a#b", "a;b"])
def test_a_secret_may_look_like_much(tmp_path: Path, secret: str) -> None:
    text = f"[media]\naccess_key = k\nsecret_key = {secret}\n"
    if secret == "file:":
        assert "cannot read" in mistake(tmp_path, text)
    else:
        assert {"k": secret} == load(tmp_path, text).secrets


def test_where_no_secret_is_wanted_none_is_looked_at() -> None:
    text = "[media]\naccess_key = k\nsecret_key = 'quoted'\n"

    assert s3mini.IniReader(text, "buckets.ini", "/", to_serve=False).read().sections


def test_an_unmounted_disk_is_not_served(tmp_path: Path) -> None:
    path = tmp_path / "buckets.ini"
    path.write_text(GOOD + f"path = {tmp_path}/mnt/media\n")
    path.chmod(0o600)
    done = run("serve", "--config", str(path), "--listen", "127.0.0.1:0")

    assert (2, 1) == (done.returncode, done.stderr.count("\n")), done.stderr
    assert f"{path} line 4: path in [media]: there is no folder {tmp_path}/mnt" in done.stderr
    assert not (tmp_path / "mnt").exists()


def test_a_folder_that_cannot_be_reached_is_not_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ProtectHome=yes locks /home: who is told to make what is there looks in the wrong place."""
    real = os.stat

    def stat(path: Any, *arguments: Any, **named: Any) -> os.stat_result:
        if path == "/home/you/media":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "stat", stat)
    said = mistake(tmp_path, GOOD + "path = /home/you/media\n")

    assert "line 4: path in [media]: cannot reach /home/you/media: Permission denied; " in said
    assert "ProtectHome=" in said
    assert "make it" not in said


@pytest.mark.parametrize(("written", "told", "warned"), [
    ("data = /srv/s3", "/var/lib/s3mini", True), ("data = /srv/s3", "/srv/s3/", False),
    ("data = /srv/s3", "", False), ("data = s3mini-data", "/var/lib/s3mini", False),
    ("", "/var/lib/s3mini", False)])
def test_a_data_folder_that_the_command_line_overrules_is_warned_of(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], written: str, told: str, warned: bool
) -> None:
    """The unit names one: who moves it in buckets.ini alone would be served empty buckets."""
    path = tmp_path / "buckets.ini"
    path.write_text(f"[SERVER]\n{written}\n{GOOD}")
    s3mini.warn_of_settings(s3mini.load_config(str(path), told))
    sentence = "data in [SERVER] is /srv/s3, and not used: --data /var/lib/s3mini counts"

    assert (f"s3mini: {sentence}\n" if warned else "") == capfd.readouterr().err


def test_a_data_folder_that_is_a_link_to_the_one_that_counts_is_used(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "buckets.ini").write_text(f"[SERVER]\ndata = {tmp_path}/link\n{GOOD}")
    config = s3mini.load_config(str(tmp_path / "buckets.ini"), str(tmp_path))

    assert "" == config.unused


def test_a_folder_that_is_gone_is_not_asked_where_the_data_folder_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell or a test may stand in one that was removed."""
    path = tmp_path / "buckets.ini"
    path.write_text(GOOD)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()

    assert str(tmp_path) == s3mini.load_config(str(path), str(tmp_path)).data
    with s3mini.start() as fake:
        assert os.path.isdir(fake.data)


def test_a_data_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    path = tmp_path / "buckets.ini"
    path.write_text(GOOD)
    path.chmod(0o600)
    (tmp_path / "file").touch()
    done = run(
        "serve", "--config", str(path), "--data", f"{tmp_path}/file/data", "--listen", "127.0.0.1:0"
    )

    assert (2, 1) == (done.returncode, done.stderr.count("\n"))
    assert f"{tmp_path}/file/data" in done.stderr


def test_a_good_file_is_called_good_where_its_name_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "日.ini"
    path.write_text(GOOD)
    path.chmod(0o600)
    done = run("config", "--config", str(path), PYTHONIOENCODING="ascii")

    assert (0, "") == (done.returncode, done.stderr)
    assert f"{tmp_path}/\\u65e5.ini is good; sections: 1" in done.stdout


@pytest.mark.parametrize("command", ["config", "serve"])
def test_certificates_that_are_none_are_a_sentence(tmp_path: Path, command: str) -> None:
    path = tmp_path / "buckets.ini"
    for cert, key, line, said in (
        ("nowhere.pem", "buckets.ini", 3, "tls_cert in [SERVER]: cannot read"),
        ("buckets.ini", "nowhere.pem", 4, "tls_key in [SERVER]: cannot read"),
        ("buckets.ini", "", 3, "tls_cert in [SERVER]: cannot use"),
    ):
        path.write_text(f"[SERVER]\n\ntls_cert = {cert}\ntls_key = {key}\n" + GOOD)
        path.chmod(0o600)
        done = run(command, "--config", str(path))

        assert (2, 1) == (done.returncode, done.stderr.count("\n")), done.stderr
        assert f"s3mini: {path} line {line}: {said} {tmp_path}/" in done.stderr
        assert "PEM" in done.stderr


def test_a_bucket_folder_that_cannot_be_used_is_a_sentence(tmp_path: Path) -> None:
    path, folder = tmp_path / "buckets.ini", tmp_path / "served"
    folder.mkdir()
    (folder / ".s3mini").touch()  # a file where its room has to be
    path.write_text(GOOD + f"path = {folder}\n")
    path.chmod(0o600)
    done = run("serve", "--config", str(path), "--listen", "127.0.0.1:0")

    assert (2, 1) == (done.returncode, done.stderr.count("\n")), done.stderr
    assert f"s3mini: {path} line 4: path in [media]: cannot use {folder}: " in done.stderr


NOTHING_CAN_BE_MADE = """
import errno, os, sys
sys.path.insert(0, sys.argv.pop(1))
import s3mini
number = getattr(errno, sys.argv.pop(1))
def mkdir(path, *more, **named):
    if os.path.exists(path):
        raise FileExistsError(errno.EEXIST, "", path)
    raise OSError(number, os.strerror(number), path)
os.mkdir = mkdir
sys.exit(s3mini.main())
"""


@pytest.mark.parametrize("which", ["path", "data"])
@pytest.mark.parametrize(("error", "advice"), [
    ("EROFS", "; mount it for writing; under systemd: ReadWritePaths="),
    ("EACCES", "; this user must own it"), ("ENOSPC", "")])
def test_a_folder_that_cannot_be_written_comes_with_what_helps(
    tmp_path: Path, which: str, error: str, advice: str
) -> None:
    path, data, served = (tmp_path / name for name in ("buckets.ini", "data", "served"))
    path.write_text(GOOD + (f"path = {served}\n" if which == "path" else ""))
    path.chmod(0o600)
    data.mkdir()
    served.mkdir()
    command = [sys.executable, "-c", NOTHING_CAN_BE_MADE, str(PROGRAM.parent), error, "serve",
               "--config", str(path), "--data", str(data), "--listen", "127.0.0.1:0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert (2, 1) == (done.returncode, done.stderr.count("\n")), done.stderr
    assert f"cannot use {served}" in done.stderr or which == "data"
    assert done.stderr.endswith(f"{advice}\n")
    assert advice or "must own" not in done.stderr


def test_one_more_key_may_come_first_and_inherits(tmp_path: Path) -> None:
    """What stands in [DEFAULT] is nobody's mistake; the bucket's own section is what counts."""
    config = load(
        tmp_path,
        "[DEFAULT]\nquota = 1G\n[media:ci]\naccess_key = x\nsecret_key = y\nmode = read\n"
        + GOOD
        + "public = read\nquota = 2G\n",
    )
    first, second = config.sections_of("media")

    assert ("media", ("",), 2 * 1024**3) == (first.name, first.public, first.quota)
    assert ("media:ci", "read") == (second.name, second.mode)


def test_the_options_of_a_second_key_of_a_pattern_hold_for_its_buckets(serve: Serve) -> None:
    server = serve(
        "[t-*]\naccess_key = a\nsecret_key = s\n"
        "[t-*:b]\naccess_key = b\nsecret_key = s\npublic = read\n",
        durability="none",
    )
    for key, status in (("a", 403), ("b", 200)):
        s3 = server.client(key, bucket=f"t-{key}")
        s3.put()
        s3.put("k", b"x")

        assert status == s3.anonymous().get("k").status
