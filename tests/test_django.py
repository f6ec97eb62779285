"""A real Django project whose static files and uploads live in s3mini, behind nginx with TLS.

Behind TLS boto3 sends aws-chunked bodies with a trailer; a server that does not decode them stores
the framing, and Django never notices. So the files on disk are compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest
import rooms
from conftest import Server
from nginx import Nginx

pytestmark = pytest.mark.clients

UPLOAD = random.Random(2).randbytes(30 * 1024**2)
CSS = b'body { background: url("logo.png") }\n'

SETTINGS = """
import os
SECRET_KEY = "for a test"
ALLOWED_HOSTS = ["testserver"]
ROOT_URLCONF = "project.urls"
INSTALLED_APPS = ["django.contrib.staticfiles", "gallery"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATICFILES_DIRS = ["assets"]
STATIC_URL = "static/"
PUBLIC = {
    "endpoint_url": os.environ["ENDPOINT"],
    "access_key": "public-key",
    "secret_key": "public-secret-0123456789abcdef",
    "bucket_name": "public",
    "querystring_auth": False,
}
PRIVATE = {
    "endpoint_url": os.environ["ENDPOINT"],
    "access_key": "test-key",
    "secret_key": "test-secret-0123456789abcdef",
    "bucket_name": os.environ["BUCKET"],
}
STORAGES = {
    "default": {"BACKEND": "storages.backends.s3.S3Storage", "OPTIONS": PRIVATE},
    "images": {
        "BACKEND": "storages.backends.s3.S3Storage",
        "OPTIONS": {**PUBLIC, "location": os.environ["BUCKET"] + "/images"},
    },
    "staticfiles": {
        "BACKEND": "storages.backends.s3.S3ManifestStaticStorage",
        "OPTIONS": {**PUBLIC, "location": os.environ["BUCKET"] + "/static"},
    },
}
"""

MODELS = """
from django.core.files.storage import storages
from django.db import models

def images():
    return storages["images"]

class Photo(models.Model):
    file = models.FileField(upload_to="photos")

class Image(models.Model):
    file = models.FileField(upload_to="%Y", storage=images)
"""

URLS = """
from django.http import JsonResponse
from django.urls import path
from gallery.models import Photo

def upload(request):
    photo = Photo.objects.create(file=request.FILES["file"])
    return JsonResponse({"name": photo.file.name, "size": photo.file.size})

urlpatterns = [path("upload", upload)]
"""

# What a project does with its files, each a function that prints its result as JSON.
STEPS = """
import hashlib, json, sys
import django
django.setup()
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.templatetags.static import static
from django.test import Client
from gallery.models import Image, Photo

def upload(path):
    with open(path, "rb") as file:
        return Client().post("/upload", {"file": file}).json()

def use(name):
    with default_storage.open(name) as file:
        content = hashlib.md5(file.read()).hexdigest()
        file.seek(1000)
        piece = file.read(10).hex()
    return {
        "content": content,
        "piece": piece,
        "size": default_storage.size(name),
        "exists": default_storage.exists(name),
        "missing": default_storage.exists("nothing/here"),
        "listed": default_storage.listdir("photos"),
        "year": default_storage.get_modified_time(name).year,
        "url": default_storage.url(name),
    }

def save(name, text):
    return default_storage.save(name, ContentFile(text.encode()))

def delete():
    photo = Photo.objects.get()
    photo.file.delete()
    return default_storage.exists("photos/upload.bin")

def image(path):
    with open(path, "rb") as file:
        image = Image.objects.create(file=ContentFile(file.read(), name="dot.png"))
    return image.file.url

def static_url(name):
    return static(name)

print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
"""

FILES = {
    "project/__init__.py": "",
    "project/settings.py": SETTINGS,
    "project/urls.py": URLS,
    "gallery/__init__.py": "",
    "gallery/models.py": MODELS,
    "steps.py": STEPS,
}


def png() -> bytes:
    """One white pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + checksum

    header = (1).to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
    pixel = zlib.compress(b"\x00\xff")
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", pixel), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


class Site:
    """The project, and where its files should lie on disk."""

    def __init__(self, folder: Path, server: Server, tls: Nginx, bucket: str) -> None:
        self.folder, self.tls = folder, tls
        self.private = server.data / bucket
        self.public = server.data / "public" / bucket
        self.python = rooms.room("django") / "python"
        self.environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "DJANGO_SETTINGS_MODULE": "project.settings",
            "PYTHONPATH": str(folder),
            "AWS_CA_BUNDLE": tls.cafile,
            "ENDPOINT": tls.endpoint,
            "BUCKET": bucket,
        }
        for name, text in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        (folder / "assets").mkdir()
        (folder / "assets/style.css").write_bytes(CSS)
        (folder / "assets/logo.png").write_bytes(png())
        (folder / "upload.bin").write_bytes(UPLOAD)

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(self.python), *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def manage(self, *arguments: str) -> str:
        return self.run("-m", "django", *arguments)

    def step(self, name: str, *arguments: str) -> Any:
        return json.loads(self.run("steps.py", name, *arguments))


@pytest.fixture
def site(tmp_path: Path, server: Server, tls: Nginx, bucket: str) -> Site:
    return Site(tmp_path, server, tls, bucket)


def test_collectstatic_makes_a_manifest_and_files_that_anyone_can_fetch(site: Site) -> None:
    said = site.manage("collectstatic", "--noinput")
    assert "2 static files copied" in said

    logo = f"logo.{hashlib.md5(png()).hexdigest()[:12]}.png"
    manifest = json.loads((site.public / "static/staticfiles.json").read_bytes())
    assert manifest["paths"]["logo.png"] == logo
    assert (site.public / "static" / logo).read_bytes() == png()
    style = (site.public / "static" / manifest["paths"]["style.css"]).read_bytes()
    assert style == CSS.replace(b"logo.png", logo.encode())

    url = site.step("static_url", "style.css")
    reply = site.tls.client().fetch(url)
    assert (200, style) == (reply.status, reply.body)
    assert reply.headers["content-type"].startswith("text/css")


def test_an_upload_of_30_mb_is_the_same_file_on_disk(site: Site) -> None:
    site.manage("migrate", "--run-syncdb", "--verbosity", "0")
    saved = site.step("upload", "upload.bin")
    assert saved == {"name": "photos/upload.bin", "size": len(UPLOAD)}
    assert (site.private / "photos/upload.bin").read_bytes() == UPLOAD

    found = site.step("use", "photos/upload.bin")
    assert found["content"] == hashlib.md5(UPLOAD).hexdigest()
    assert found["piece"] == UPLOAD[1000:1010].hex()
    assert found["size"] == len(UPLOAD)
    assert (found["exists"], found["missing"]) == (True, False)
    assert found["listed"] == [[], ["upload.bin"]]
    assert found["year"] >= 2025
    assert site.tls.client().fetch(found["url"]).body == UPLOAD
    assert site.tls.client().fetch(found["url"].partition("?")[0]).status == 403

    assert site.step("delete") is False
    assert not (site.private / "photos").exists()


def test_a_file_that_is_saved_again_is_overwritten(site: Site) -> None:
    for text in ("a long first version", "second"):
        assert "notes/today.txt" == site.step("save", "notes/today.txt", text)
        assert (site.private / "notes/today.txt").read_text() == text


def test_a_public_image_has_a_plain_url_and_its_own_type(site: Site) -> None:
    site.manage("migrate", "--run-syncdb", "--verbosity", "0")
    url = site.step("image", "assets/logo.png")
    assert "?" not in url

    reply = site.tls.client().fetch(url)
    assert (200, png()) == (reply.status, reply.body)
    assert "image/png" == reply.headers["content-type"]
    (on_disk,) = site.public.rglob("dot*.png")
    assert on_disk.read_bytes() == png()
