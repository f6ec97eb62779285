"""s3mini.py is laid out as its docstring says, and reads only downwards."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import s3mini

SOURCE = Path(s3mini.__file__).read_text(encoding="utf-8")
TREE = ast.parse(SOURCE)
BANNERS = [
    (int(m[1]), m[2], SOURCE.count("\n", 0, m.start()) + 1)
    for m in re.finditer(r"^# ([0-9]+)\. (.+)$", SOURCE, re.MULTILINE)
]
FUNCTIONS = [n for n in ast.walk(TREE) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
NESTING = (ast.If, ast.For, ast.While, ast.With, ast.Try)

LONGEST = 50  # lines of a function without its docstring
DEEPEST = 4  # nested blocks: the store's commit is tries within a lock within a loop
PURE = {"Wire", "Documents", "Checksums", "Signatures"}


def section_of(line: int) -> tuple[int, str]:
    found = [(number, title) for number, title, start in BANNERS if start <= line]
    return found[-1] if found else (0, "head")


def top_names() -> dict[str, ast.stmt]:
    names: dict[str, ast.stmt] = {}
    for node in TREE.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        names.setdefault(name.id, node)
    return names


def without_annotations(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it but annotations, which are not executed."""
    yield node
    for field, value in ast.iter_fields(node):
        if field not in {"annotation", "returns"}:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from without_annotations(child)


def local_names(node: ast.AST) -> set[str]:
    """What is bound somewhere inside: arguments and assignments."""
    bound = {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
    for n in ast.walk(node):
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store):
            bound.add(n.id)
        elif isinstance(n, ast.FunctionDef) and n is not node:
            bound.add(n.name)
    return bound


def depth(node: ast.AST, level: int = 0) -> int:
    """The deepest nesting of blocks in a function; elif is no deeper."""
    deepest = level
    for field, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        for child in children:
            if not isinstance(child, ast.AST) or isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                continue
            is_elif = field == "orelse" and isinstance(node, ast.If) and len(children) == 1
            deeper = isinstance(child, NESTING) and not (is_elif and isinstance(child, ast.If))
            deepest = max(deepest, depth(child, level + deeper))
    return deepest


def length(node: ast.FunctionDef) -> int:
    """Lines without the docstring."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node) is not None:
        lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
    return lines


def test_the_banners_are_the_contents_of_the_docstring() -> None:
    contents = re.findall(r"^ +([0-9]+)\. (\w+) ", s3mini.__doc__ or "", re.MULTILINE)

    assert [(int(number), title) for number, title in contents] == [(n, t) for n, t, _ in BANNERS]


def test_a_section_uses_only_the_sections_above_it() -> None:
    names = top_names()
    upward = []
    for name, node in names.items():
        here, bound = section_of(node.lineno), local_names(node)
        for used in without_annotations(node):
            if isinstance(used, ast.Name) and used.id in names and used.id not in bound:
                there = section_of(names[used.id].lineno)
                if there > here:
                    upward.append(f"{name} (section {here[0]}) uses {used.id} ({there[0]})")

    assert upward == []


def test_pure_sections_touch_no_disk_no_socket_and_no_clock() -> None:
    impure = []
    for node in ast.walk(TREE):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if section_of(node.lineno)[1] in PURE and re.fullmatch(
                r"os\.(?!close).*|socket\..*|time\.(time|monotonic|perf_counter)(_ns)?", name
            ):
                impure.append(f"{name} in line {node.lineno}")
        if (
            isinstance(node, ast.Name)
            and node.id in {"monotonic", "disk_time"}
            and section_of(node.lineno)[1] in PURE
        ):
            impure.append(f"{node.id} in line {node.lineno}")

    assert impure == []


def test_a_running_server_says_nothing_that_can_fail() -> None:
    """A full disk under its log must not end it: all that it says goes through say()."""
    words = re.compile(r"sys\.std(out|err)|print(_exc)?\(")
    loud = [
        f"line {number}: {line}"
        for number, line in enumerate(SOURCE.splitlines(), 1)
        if section_of(number)[1] == "Server" and words.search(line)
    ]

    assert loud == []


def test_no_function_is_longer_or_deeper_than_can_be_read() -> None:
    long = [f"{f.name}: {length(f)} lines" for f in FUNCTIONS if length(f) > LONGEST]
    deep = [f"{f.name}: {depth(f)} deep" for f in FUNCTIONS if depth(f) > DEEPEST]

    assert long + deep == []


def test_functions_are_short_in_the_main() -> None:
    lengths = sorted(length(f) for f in FUNCTIONS)

    assert lengths[len(lengths) // 2] <= 9
    assert lengths[len(lengths) * 9 // 10] <= 27


def test_every_error_code_is_known_and_used() -> None:
    raised = set(re.findall(r'S3Error\(\s*"(\w+)"', SOURCE))
    words = set(re.findall(r'"(\w+)"', SOURCE[SOURCE.index("# 3. Configuration") :]))

    assert raised - set(s3mini.ERRORS) == set()
    assert set(s3mini.ERRORS) - words == set()


def test_every_operation_says_what_it_does() -> None:
    silent = [
        operation.__name__
        for operation, _ in s3mini.ROUTES.values()
        if operation not in [habit for habit, _ in s3mini.HABITS.values()]
        and not inspect.getdoc(operation)
    ]

    assert silent == []


def test_every_route_says_what_it_needs() -> None:
    needs = {"read", "list", "write", "delete", "configure"}
    needs |= {"read more", "known", "key", "nothing"}

    assert {need for _, need in s3mini.ROUTES.values()} <= needs


def test_the_file_names_no_secret_in_a_repr() -> None:
    key = s3mini.SigningKey(b"top secret")
    config = s3mini.dev_config("127.0.0.1:0", "/nowhere")
    secrets = {"top secret", "5e1f", *config.secrets.values()}
    shown = repr([
        s3mini.Signed("AKIA", "UNSIGNED-PAYLOAD", signature="5e1f", key=key),
        s3mini.Claim("AKIA", "", "", (), "5e1f"),
        config,
        config.sections[0],
    ])

    assert len(secrets) > 2
    assert not [secret for secret in secrets if secret in shown]


def test_the_start_imports_nothing_that_it_can_do_without() -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(s3mini.__file__).parent)!r}); import s3mini"
    left_out = "argparse", "concurrent.futures", "configparser", "dataclasses", "inspect"
    code += f"; print(sorted(set(sys.modules) & set({left_out})))"
    command = [sys.executable, "-I", "-S", "-c", code]

    assert "[]\n" == subprocess.run(command, capture_output=True, text=True, check=True).stdout
