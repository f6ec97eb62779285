"""The README's table, examples and files are what the program does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from nginx import CONFIG, LOCATION

import s3mini

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_nginx_is_tested_as_it_is_described() -> None:
    block = re.findall("```nginx\n(.*?)```", README, re.DOTALL)[0]
    words = re.findall(r"^ *(\w+ [^;{]*;)", block, re.MULTILINE)
    told = {word for word in words if not word.startswith(("listen", "server_name", "ssl_"))}
    tested = set(re.findall(r"^ *(\w+ [^;{]*;)", LOCATION + CONFIG, re.MULTILINE))

    assert "ignore_invalid_headers off;" in told
    assert told <= tested


def operation_names() -> set[str]:
    """The operations of ROUTES by their names in AWS's API reference."""
    names = {"HeadObject", "PostObject"}
    for operation, _ in s3mini.ROUTES.values():
        names.add("".join(word.capitalize() for word in operation.__name__.split("_")))
    return names


def test_the_table_of_operations_is_what_is_routed() -> None:
    table = README.partition("<!-- operations")[2].partition("<!-- /operations -->")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line]
    named = set(re.findall(r"\b(?:[A-Z][a-z]+){2,}(?:V2)?\b", " ".join(rows)))

    assert operation_names() == named


def test_the_example_of_the_configuration_has_every_option() -> None:
    example = (ROOT / "buckets.ini.example").read_text(encoding="utf-8")

    assert s3mini.render_example() == example


def test_the_example_of_the_configuration_is_good() -> None:
    config = s3mini.load_config(str(ROOT / "buckets.ini.example"))

    assert ["media", "media:ci", "test-*", "test-*:alt"] == [s.name for s in config.sections]


def test_the_configuration_in_the_readme_is_good(tmp_path: Path) -> None:
    (text,) = re.findall(r"```ini\n(.*?)```", README, re.DOTALL)
    secret = tmp_path / "restic.secret"
    secret.write_text("a secret\n")

    config = s3mini.IniReader(
        text.replace("/etc/s3mini/restic.secret", str(secret)), "README.md", str(tmp_path)
    ).read()

    assert ["full", "read", "append"] == [s.mode for s in config.sections]


def test_the_fake_in_the_readme_runs() -> None:
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "start(" in c]
    more = "    client.put_object(Bucket='media', Key='a', Body=b'1')\nprint('done')\n"

    done = subprocess.run(
        [sys.executable, "-c", "import boto3\n" + code + more],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )

    assert (0, "done\n") == (done.returncode, done.stdout), done.stderr


def test_the_two_commands_are_the_ones_that_run() -> None:
    commands = re.findall(r"^    \$ (.+)$", README, re.MULTILINE)

    assert ["python3 s3mini.py", "python3 tests"] == commands


def test_every_field_of_a_sidecar_is_documented() -> None:
    promise = README.partition("The sidecar is UTF-8 JSON")[2].partition("## Limits")[0]

    assert set(s3mini.ENTRY_TYPES) <= set(re.findall(r"`(\w+)`", promise))


def test_the_top_of_the_repository_holds_what_the_card_allows() -> None:
    allowed = {"s3mini.py", "buckets.ini.example", "tests", "s3mini.service", "README.md"}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()

    assert {n.partition("/")[0] for n in tracked if not n.startswith(".")} <= allowed
