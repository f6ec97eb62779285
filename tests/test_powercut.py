"""After a power cut at any moment an object is the old one or the new one, whole.

powercut.py replays the cuts. The last tests leave out one fsync each: the checker must see it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Callable

import pytest
from powercut import (
    Bench,
    BytesSource,
    Event,
    Forgetful,
    KilledError,
    Ordered,
    PartOf,
    Recorder,
    body_of,
    check_state,
    entry_of,
    fast_folder,
    put,
    version_of,
)

import s3mini

NEW = b"new content, which is longer than the old content was"
SAME_SIZE = b"NEW CONTENT OF THIS KEY"  # as long as the old one: only the mtime tells them apart
UPLOAD = "0123456789abcdef" * 2


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A bucket in a folder where many small files are made quickly."""
    with tempfile.TemporaryDirectory(prefix="s3mini-powercut-", dir=fast_folder()) as folder:
        made = Bench(Path(folder))
        made.create()
        yield made


Record = Callable[[], None]
Scenario = Callable[[Bench, Record], None]


def put_new(bench: Bench, record: Record) -> None:
    bench.prepare("other")
    record()
    bench.put("k", NEW, "new")


def put_in_new_folders(bench: Bench, record: Record) -> None:
    record()
    bench.put("x/y/k", NEW, "new")


def put_over(bench: Bench, record: Record) -> None:
    bench.prepare("x/k")
    record()
    bench.put("x/k", NEW, "new")


def put_over_same_size(bench: Bench, record: Record) -> None:
    bench.prepare("k")
    record()
    bench.put("k", SAME_SIZE, "new")


def put_over_twice(bench: Bench, record: Record) -> None:
    bench.prepare("x/k")
    record()
    bench.put("x/k", SAME_SIZE, "new")
    bench.put("x/k", NEW, "newest")


def put_refused(bench: Bench, record: Record) -> None:
    """A condition that fails changes nothing, and takes the folders made for it away."""
    bench.prepare("k")
    record()

    def refuse(_: Any) -> None:
        raise s3mini.S3Error("PreconditionFailed")

    for key in ("k", "x/y/k"):
        with bench.operation({key: bench.things.get(key)}) as store:
            with pytest.raises(s3mini.S3Error):
                store.put(key, body_of(NEW), lambda: entry_of(NEW, "new"), refuse)


def put_by_hand(bench: Bench, record: Record) -> None:
    """A file without a sidecar becomes an object of the same bytes, and is then overwritten."""
    old = b"put there by hand"
    Path(bench.root, "k.txt").write_bytes(old)
    entry = bench.store.head("k.txt")
    Path(bench.root, ".k.txt.s3mini.json").unlink()
    bench.things["k.txt"] = version_of(old, entry)
    record()
    bench.put("k.txt", NEW, "new")


def changed_by_hand(bench: Bench, record: Record) -> None:
    """A file that its sidecar does not describe is read, and becomes an object; then as above."""
    bench.prepare("k.txt")
    changed, sidecar = b"changed by hand", Path(bench.root, ".k.txt.s3mini.json")
    before = sidecar.read_bytes()
    Path(bench.root, "k.txt").write_bytes(changed)
    bench.things["k.txt"] = version_of(changed, bench.store.head("k.txt"))
    sidecar.write_bytes(before)
    bench.store._entries.clear()
    record()
    assert bench.store.head("k.txt").size == len(changed)
    bench.put("k.txt", NEW, "new")


def put_where_tmp_was_tidied_away(bench: Bench, record: Record) -> None:
    bench.prepare("x/k")
    os.rmdir(bench.store.files.temp)
    record()
    bench.put("x/k", NEW, "new")
    bench.put("y/k", NEW, "new")


def delete(bench: Bench, record: Record) -> None:
    bench.prepare("x/y/k")
    bench.prepare("x/other")
    record()
    bench.delete("x/y/k")


def delete_and_put_again(bench: Bench, record: Record) -> None:
    bench.prepare("x/k")
    record()
    bench.delete("x/k")
    bench.put("x/k", SAME_SIZE, "new")


def delete_many(bench: Bench, record: Record) -> None:
    for key in ("k", "x/k", "x/l", "other"):
        bench.prepare(key)
    record()
    bench.delete("k", "x/k", "x/l", "nothing")


def update(bench: Bench, record: Record) -> None:
    """Another content type, metadata and tags for the same bytes, twice."""
    old = b"old content of this key"
    bench.prepare("x/k", old)
    record()
    for name in ("new", "newest"):
        wanted = entry_of(old, name)
        change = {n: getattr(wanted, n) for n in ("headers", "metadata", "tags")}
        with bench.operation({"x/k": version_of(old, wanted)}) as store:
            store.update("x/k", lambda entry, c=change: entry._replace(**c), s3mini.no_check)


def update_and_put(bench: Bench, record: Record) -> None:
    update(bench, record)
    bench.put("x/k", SAME_SIZE, "put")


def copy(bench: Bench, record: Record) -> None:
    data = b"old content of this key"
    bench.prepare("source", data)
    bench.prepare("x/k", NEW)
    record()
    with bench.operation({"x/k": version_of(data, entry_of(data, "copy"))}) as store:
        found = store.open("source")
        with open(found.fd, "rb"):
            reader = s3mini.FileReader(found.fd, 0, len(data))
            body = s3mini.Body(reader, s3mini.Promise(length=len(data)))
            store.put("x/k", body, lambda: entry_of(data, "copy"), s3mini.no_check)


def multipart(bench: Bench, record: Record) -> None:
    """Create, two parts, one of them sent again with another size: all is copied."""
    upload_of(bench, record, [b"the first part ", b"and the second"], b"sent again later")


def multipart_in_place(bench: Bench, record: Record) -> None:
    """The object is the file into which the parts were written."""
    upload_of(bench, record, [b"the first part, ", b"and the second"])


def multipart_half_in_place(bench: Bench, record: Record) -> None:
    """A part that was sent twice is copied to its place."""
    upload_of(bench, record, [b"the first part, ", b"and the second"], b"sent again later")


def upload_of(bench: Bench, record: Record, pieces: list[bytes], before: bytes = b"") -> None:
    """Create, parts, Complete over an object that is there. `before`: the first part's first."""
    data = b"".join(pieces)
    lines = [f"{len(piece)} {hashlib.md5(piece).hexdigest()}" for piece in pieces]
    final = entry_of(data, "joined", etag="0123-2", parts=lines, upload=UPLOAD)
    things = [PartOf(UPLOAD, "x/k", number) for number in (1, 2)]
    bench.prepare("x/k")
    record()
    upload = s3mini.Upload(UPLOAD, "x/k", 1_600_000_000, entry_of(b"", "joined"))
    with bench.operation(dict.fromkeys(things)) as store:
        store.uploads.create(upload)
    first = [(1, before), (2, pieces[1]), (1, pieces[0])]
    for number, piece in first if before else enumerate(pieces, 1):
        md5 = hashlib.md5(piece).hexdigest()
        with bench.operation({things[number - 1]: md5}) as store:
            body = body_of(piece)
            store.uploads.put_part(upload, number, body)
    with bench.operation({"x/k": version_of(data, final), **dict.fromkeys(things)}) as store:
        store.uploads.complete(
            upload, lambda parts: parts, lambda _: final, s3mini.no_check
        )


def abort(bench: Bench, record: Record) -> None:
    bench.prepare("k")
    upload = s3mini.Upload(UPLOAD, "k", 1_600_000_000, entry_of(b"", "joined"))
    bench.store.uploads.create(upload)
    bench.store.uploads.put_part(upload, 1, body_of(NEW))
    thing = PartOf(UPLOAD, "k", 1)
    bench.things[thing] = hashlib.md5(NEW).hexdigest()
    record()
    with bench.operation({thing: None}) as store:
        store.uploads.abort(upload)


def kept(bench: Bench, record: Record) -> None:
    """With `keep` the old versions get a second name first: never a moment without the object."""
    bench.prepare("x/k")
    record()
    bench.store.versions.keep = 3600
    bench.put("x/k", SAME_SIZE, "new")
    bench.delete("x/k")


def brought_back(bench: Bench, record: Record) -> None:
    """undelete: over what is there by now, and where there is nothing."""
    bench.store.versions.keep = 3600
    for key in ("x/k", "gone"):
        bench.prepare(key)
    old = dict(bench.things)
    put(bench.store, "x/k", SAME_SIZE, "new")
    bench.store.delete("gone", s3mini.no_check)
    bench.things.update({"x/k": version_of(SAME_SIZE, entry_of(SAME_SIZE, "new")), "gone": None})
    record()
    bench.store.versions.keep = 3600
    for version in bench.store.versions.lost("", 0):
        with bench.operation({version.key: old[version.key]}) as store:
            store.bring_back(version)


def put_by_hand_and_counted(bench: Bench, record: Record) -> None:
    """With a quota a file without a sidecar gets one before it is overwritten."""

    def record_with_quota() -> None:
        record()
        bench.store.quota.limit = 10**6
        bench.store.count()

    put_by_hand(bench, record_with_quota)


def step_aside(bench: Bench, record: Record) -> None:
    bench.prepare("a")
    record()
    bench.put("a/b", NEW, "new")


def step_aside_and_go_on(bench: Bench, record: Record) -> None:
    """With a folder of its name there, the object is overwritten, deleted, and made again."""
    bench.prepare("a")
    record()
    bench.put("a/b", NEW, "new")
    bench.put("a", SAME_SIZE, "new")
    bench.delete("a")
    bench.put("a", NEW, "newest")
    bench.delete("a/b")


def odd_names(bench: Bench, record: Record) -> None:
    """Escaped, split over several folders, and empty segments."""
    record()
    bench.put("dir/", NEW, "new")
    bench.put("ä%" + "x" * 300, NEW, "new")


SCENARIOS: list[Scenario] = [
    put_new, put_in_new_folders, put_over, put_over_same_size, put_over_twice, put_refused,
    put_by_hand, changed_by_hand, put_where_tmp_was_tidied_away, delete, delete_and_put_again,
    delete_many, update, update_and_put, copy, multipart, multipart_in_place,
    multipart_half_in_place, abort, kept, brought_back,
    put_by_hand_and_counted, step_aside, step_aside_and_go_on, odd_names,
]  # fmt: skip


BY_HAND = (put_by_hand, changed_by_hand, put_by_hand_and_counted)


def test_parts_lie_in_place(bench: Bench) -> None:
    """What the scenarios above rest on: the object is the file the parts were written to."""
    for scenario, copied in ((multipart_in_place, 0), (multipart_half_in_place, 1), (multipart, 2)):
        scenario(bench, bench.record)
        log = bench.recorder.log
        made = [e.node for e in log if e.call == "create" and e.name == s3mini.WHOLE]
        linked = [e.node for e in log if e.call == "link"]
        assert linked == (made if copied < 2 else [])
        bench.delete("x/k")
        del bench.things["x/k"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_power_cut_leaves_the_old_object_or_the_new_one(bench: Bench, scenario: Scenario) -> None:
    scenario(bench, bench.record)

    states, damage = bench.damage()
    assert not damage, damage
    assert states > 2, "nothing was replayed"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_disk_that_keeps_the_order_of_names_needs_one_fsync_less(
    bench: Bench, scenario: Scenario
) -> None:
    scenario(bench, lambda: bench.record(Ordered))

    states, damage = bench.damage()
    assert not damage, damage
    assert states > 2, "nothing was replayed"


def test_a_disk_that_only_says_it_keeps_the_order_is_found(bench: Bench) -> None:
    class Liar(Ordered):
        is_ordered = False

    put_over_same_size(bench, lambda: bench.record(Liar))

    assert "" != bench.damage()[1]


def test_a_disk_that_nothing_is_known_of_does_not_keep_the_order(tmp_path: Path) -> None:
    assert not s3mini.keeps_order("/proc")
    assert not s3mini.keeps_order(str(tmp_path / "nothing"))
    for path in (tmp_path, Path("/dev/shm")):
        asked = ["stat", "-f", "-c", "%T", str(path)]
        kind = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        if s3mini.keeps_order(str(path)):
            assert kind in ("ext2/ext3", "xfs", "tmpfs")
        else:
            assert kind not in ("xfs", "tmpfs")


def test_a_second_power_cut_does_no_more_than_the_first(bench: Bench) -> None:
    """A write over whatever a power cut has left is as safe as any other."""
    put_over_same_size(bench, bench.record)
    total = 0

    for number, (state, root) in enumerate(bench.states()):
        again = Bench(bench.folder / f"again{number}")
        again.folder.mkdir()
        shutil.copytree(root, again.root)
        state.make(again.root + "-read")
        again.things = check_state(again.root + "-read", state.allowed)
        again.record()
        again.put("k", NEW, "newest")
        states, damage = again.damage()
        total += states
        assert not damage, f"{damage}\nafter the first power cut at\n{state}"
        shutil.rmtree(again.folder)
    assert total > 20, "nothing was replayed"


@pytest.mark.parametrize("over", ["nothing", "another", "one of the same time"])
def test_a_power_cut_while_an_object_is_renamed_leaves_it_somewhere(
    bench: Bench, over: str
) -> None:
    bench.prepare("x/k")
    if over != "nothing":
        bench.prepare("y/n", SAME_SIZE)
    if over == "one of the same time":
        give_one_stamp(bench, "x/k", "y/n")
    bench.record()
    old = bench.things["x/k"]
    with bench.operation({"x/k": None, "y/n": old}) as store:
        store.rename("x/k", "y/n", s3mini.no_check, s3mini.no_check)

    assert bench.store.head("y/n").md5 == hashlib.md5(old.data).hexdigest()
    for state, root in bench.states():
        found = check_state(root, state.allowed)
        assert old in found.values(), f"neither name has it\n{state}"


def give_one_stamp(bench: Bench, *keys: str) -> None:
    """As two files have it that come out of one archive."""
    for key in keys:
        path = Path(bench.root, key)
        os.utime(path, (1_000_000_000, 1_000_000_000.5))
        bench.store.head(key)  # its sidecar has the new stamp by now


def second_put_in_the_folder(bench: Bench) -> None:
    bench.put("x/y/other", NEW, "new")


def same_put_again(bench: Bench) -> None:
    bench.put("x/y/k", NEW, "new")


def same_delete_again(bench: Bench) -> None:
    bench.delete("x/k")


@pytest.mark.parametrize(
    ("scenario", "after"),
    [
        (put_in_new_folders, second_put_in_the_folder),
        (put_in_new_folders, same_put_again),
        (put_over, same_delete_again),
        (delete_and_put_again, same_delete_again),
        (step_aside, lambda bench: bench.put("a/c", NEW, "new")),
        (step_aside, lambda bench: bench.put("a", NEW, "newest")),
    ],
    ids=["folder", "put", "delete-a-put", "delete", "step-aside", "stepped-aside"],
)
@pytest.mark.parametrize("disk", [Recorder, Ordered])
def test_what_a_killed_server_saw_is_not_yet_on_the_disk(
    bench: Bench, scenario: Scenario, after: Callable[[Bench], None], disk: type[Recorder]
) -> None:
    """kill -9 between a change and its fsync, a restart, a write that is acknowledged, a cut.

    The write must not rely on a change that nobody has synced.
    """
    for kill_at in range(1, 200):
        tried = Bench(bench.folder / f"killed{kill_at}")
        tried.create()
        ended = run_until_killed(tried, scenario, partial(disk, kill_at=kill_at))
        after(tried)
        _, damage = tried.damage(only_after="acknowledged")
        assert not damage, f"killed at call {kill_at}; {damage}"
        shutil.rmtree(tried.folder)
        if ended:
            return
    pytest.fail("the operation never ended")


def run_until_killed(bench: Bench, scenario: Scenario, disk: Callable[[str], Recorder]) -> bool:
    """Whether it came to its end. Then a fresh server runs on the same files."""
    try:
        scenario(bench, lambda: bench.record(disk))
        ended = True
    except KilledError:
        ended = False
    bench.recorder.kill_at = 0
    bench.store = s3mini.Store(bench.root, bench.recorder)
    bench.store.clean()
    return ended


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s not in BY_HAND])
def test_every_change_of_the_disk_goes_through_the_file_layer(
    bench: Bench, scenario: Scenario
) -> None:
    """Else these tests would not see it. Lock files do not count: they hold nothing."""
    scenario(bench, bench.record)

    past = [path for path in bench.unrecorded() if not is_lock_file(path)]
    assert [] == [path for path in past if not path.startswith(".s3mini/tmp/")]
    assert [] == list(Path(bench.root, ".s3mini", "tmp").iterdir())


def is_lock_file(path: str) -> bool:
    return path.startswith(".s3mini/locks/") or path.endswith("/lock")


# -- the checker can see it ------------------------------------------------------------


def last_change(log: list[Event]) -> Event:
    """The last event before this fsync that changed something."""
    return next((e for e in reversed(log) if not e.call.startswith("sync")), Event("nothing"))


def is_stamped(log: list[Event], event: Event) -> bool:
    return any(e.call == "stamp" and e.node == event.node for e in log)


def has_data(log: list[Event], event: Event) -> bool:
    return any(e.call == "write" and e.node == event.node for e in log)


def of_data(log: list[Event], event: Event) -> bool:
    return event.call == "sync" and is_stamped(log, event) and has_data(log, event)


def of_sidecar(log: list[Event], event: Event) -> bool:
    return event.call == "sync" and not is_stamped(log, event)


def of_stamp(log: list[Event], event: Event) -> bool:
    """update()'s fsync, of a file that was there before."""
    return event.call == "sync" and is_stamped(log, event) and not has_data(log, event)


def after_sidecar(log: list[Event], event: Event) -> bool:
    change = last_change(log)
    return event.call == "sync_folder" and change.call == "rename" and is_sidecar(change)


def after_data(log: list[Event], event: Event) -> bool:
    change = last_change(log)
    return event.call == "sync_folder" and change.call == "rename" and not is_sidecar(change)


def is_sidecar(event: Event) -> bool:
    return event.name.endswith(s3mini.SIDECAR)


def after_mkdir(log: list[Event], event: Event) -> bool:
    return event.call == "sync_folder" and last_change(log).call == "mkdir"


def after_part(log: list[Event], event: Event) -> bool:
    change = last_change(log)
    return event.call == "sync_folder" and change.call == "create" and "@" in change.name


def after_unlink(log: list[Event], event: Event) -> bool:
    return event.call == "sync_folder" and last_change(log).call == "unlink"


@pytest.mark.parametrize(
    ("forgotten", "scenario"),
    [
        (of_data, put_new),
        (of_data, put_over),
        (of_data, put_over_same_size),
        (of_data, copy),
        (of_data, multipart),
        (of_data, multipart_half_in_place),
        (of_sidecar, put_over),
        (of_sidecar, update),
        (of_sidecar, step_aside),
        (of_sidecar, multipart),
        (of_sidecar, multipart_in_place),
        (after_sidecar, put_new),
        (after_sidecar, put_over),
        (after_sidecar, put_over_same_size),
        (after_sidecar, update),
        (after_sidecar, step_aside),
        (after_data, put_new),
        (after_data, put_over_twice),
        (after_data, multipart),
        (after_data, step_aside),
        (after_part, multipart_in_place),
        (after_mkdir, put_in_new_folders),
        (after_mkdir, multipart),
        (after_mkdir, step_aside),
        (after_unlink, delete),
        (after_unlink, delete_many),
        (after_unlink, abort),
        (of_stamp, update),
    ],
)
def test_a_protocol_with_one_fsync_left_out_is_found(
    bench: Bench, forgotten: Callable[[list[Event], Event], bool], scenario: Scenario
) -> None:
    scenario(bench, lambda: bench.record(lambda root: Forgetful(root, forgotten)))

    _, damage = bench.damage()
    assert "" != damage


class ForgetfulOrdered(Ordered, Forgetful):
    """Where small bodies and their sidecars are synced together."""


@pytest.mark.parametrize(
    ("forgotten", "scenario"),
    [
        (of_data, put_new),
        (of_data, put_over_same_size),
        (of_sidecar, put_over),
        (after_data, put_new),
        (after_mkdir, put_in_new_folders),
    ],
)
def test_it_is_found_too_where_names_keep_their_order(
    bench: Bench, forgotten: Callable[[list[Event], Event], bool], scenario: Scenario
) -> None:
    scenario(bench, lambda: bench.record(lambda root: ForgetfulOrdered(root, forgotten)))

    _, damage = bench.damage()
    assert "" != damage


class UnlinksSidecarFirst(s3mini.Store):
    """DELETE in the other order: a power cut between leaves a file without its metadata."""

    def _delete_data(self, key: str, *more: Any) -> Any:
        folder, _, name = f"{self.root}/{key}".rpartition("/")
        with s3mini.Folder.open(folder) as place, contextlib.suppress(FileNotFoundError):
            self.disk.unlink(place, f".{name}{s3mini.SIDECAR}")
        return super()._delete_data(key, *more)


def test_a_delete_in_the_wrong_order_is_found(bench: Bench) -> None:
    bench.prepare("k")
    bench.record()
    bench.store = UnlinksSidecarFirst(bench.root, bench.recorder)
    with bench.operation({"k": None}) as store:
        store._delete_data("k", ["k"], s3mini.no_check)

    _, damage = bench.damage()
    assert "" != damage


def test_an_object_whose_last_byte_is_torn_is_found(bench: Bench) -> None:
    """The checker itself: a file with the right size and mtime, and a wrong byte."""
    bench.prepare("k")
    bench.record()
    path = Path(bench.root, "k")
    mtime = path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.write(b"X")
    os.utime(path, ns=(mtime, mtime))

    with pytest.raises(AssertionError, match="damaged"):
        check_state(bench.root, {"k": frozenset([bench.things["k"]])})


def test_put_reads_its_body_in_pieces(bench: Bench) -> None:
    """What makes the states of a half written file worth something."""
    bench.record()
    put(bench.store, "k", NEW, "new")

    writes = [e for e in bench.recorder.log if e.call == "write"]
    assert len(writes) >= len(NEW) // 24
    assert BytesSource(NEW).read(100) == NEW[:24]
