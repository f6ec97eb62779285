"""Power cuts, replayed: what a disk may hold after one, at every moment of an operation.

`Recorder` is s3mini's file layer; it does what it is told and writes it down. `crash_states` reads
what was written and gives every tree of files that a power cut could leave, after each call:

    a file's bytes and mtime    sure since its fsync; later ones are there, missing, cut short,
                                half written, or zeros of the right length
    names in a folder           sure since the folder's fsync; of later changes any may be there
                                and any not, in every combination (POSIX promises no order)
    a rename inside a folder    happens or does not; one between folders may be there by halves:
                                both names, or neither

That is more than ext4, xfs or btrfs do to anyone. tmp/ is an exception: nobody reads what lies
there, so of the states that differ in nothing else a few are taken at random.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Union

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import s3mini

ALL_SUBSETS = 8  # of up to so many pending changes every subset is tried: 256 states
SAMPLED = 256  # subsets and damages of more than that
TMP = (s3mini.ROOM, "tmp")


def fast_folder() -> Optional[str]:
    """Where thousands of small trees are made quickly: memory, if there is such a folder."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


# -- what is written down ----------------------------------------------------------------------


class Event(NamedTuple):
    """One call of the file layer. Files and folders are numbers: names come and go."""

    call: str
    node: int = 0  # the file or folder that it is about
    folder: int = 0  # where its name is
    name: str = ""
    source: int = 0  # a rename's: the folder the old name was in
    old_name: str = ""
    data: bytes = b""
    offset: int = 0  # of a write
    mtime_ns: int = 0
    changes: Mapping[Any, Any] = {}  # a mark's: what the operation is to do, or b"" at its end

    def __str__(self) -> str:
        if self.call in ("began", "acknowledged"):
            return f"-- {self.call}"
        old = f"{self.source}:{self.old_name} -> " if self.old_name else ""
        place = f" {old}{self.folder}:{self.name}" if self.name else ""
        size = f" {len(self.data)} bytes" if self.data else ""
        return f"{self.call}{place} #{self.node}{size}"


class File(NamedTuple):
    data: bytes
    mtime_ns: int


ROOT = 1  # the bucket's folder


class KilledError(BaseException):
    """The process ends here. Nothing may catch it and go on."""


class Recorder(s3mini.Disk):
    """A file layer that performs each call and logs it. `start` is the tree before the first one.

    At call number `kill_at` the process "dies": that call and all later ones raise KilledError.
    """

    is_ordered = False  # whether names change on the disk in the order of the calls

    def __init__(self, root: Union[str, Path], kill_at: int = 0) -> None:
        super().__init__(durable=True)  # but the model syncs, and the disk does not
        self.log: list[Event] = []
        self.files: dict[int, File] = {}  # as they are before the first call
        self.folders: dict[int, dict[str, int]] = {}
        self.calls, self.kill_at = 0, kill_at
        self._numbers: dict[int, int] = {}  # st_ino -> our number
        self._next = itertools.count(ROOT)
        self._lock = threading.RLock()
        self._read_tree(str(root))

    def _read_tree(self, path: str) -> int:
        number = self._new(os.stat(path).st_ino)
        names = self.folders[number] = {}
        if path.endswith(f"/{s3mini.ROOM}/locks"):
            return number  # its files hold nothing
        for item in sorted(os.scandir(path), key=lambda item: item.name):
            if item.is_dir(follow_symlinks=False):
                names[item.name] = self._read_tree(item.path)
            else:
                info = item.stat(follow_symlinks=False)
                names[item.name] = known = self._numbers.get(info.st_ino) or self._new(info.st_ino)
                self.files[known] = File(Path(item.path).read_bytes(), info.st_mtime_ns)
        return number

    def _new(self, ino: int) -> int:
        self._numbers[ino] = number = next(self._next)
        return number

    def _of(self, place: Union[str, int, s3mini.Folder]) -> int:
        """The number of an open file, or of a folder. KeyError: it was made behind our back."""
        if isinstance(place, s3mini.Folder):
            place = place.path if place.fd is None else place.fd
        return self._numbers[os.stat(place).st_ino]

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        with self._lock:
            self.calls += 1
            if self.kill_at and self.calls >= self.kill_at:
                raise KilledError
            yield

    def mark(self, call: str, changes: Mapping[Any, Any]) -> None:
        self.log.append(Event(call, changes=changes))

    # every method of s3mini.Disk

    def create(self, path: str) -> int:
        with self._turn():
            folder, name = os.path.split(path)
            fd = super().create(path)
            info = os.fstat(fd)
            number = self._new(info.st_ino)
            self.log.append(
                Event("create", number, self._of(folder), name, mtime_ns=info.st_mtime_ns)
            )
            return fd

    def write(self, fd: int, data: bytes) -> None:
        with self._turn():
            offset = os.lseek(fd, 0, os.SEEK_CUR)
            super().write(fd, data)
            self.log.append(Event("write", self._of(fd), data=bytes(data), offset=offset))

    def copy(self, source: int, offset: int, length: int, fd: int) -> None:
        with self._turn():
            place = os.lseek(fd, 0, os.SEEK_CUR)
            super().copy(source, offset, length, fd)
            data = os.pread(source, length, offset)
            assert len(data) == length
            self.log.append(Event("write", self._of(fd), data=data, offset=place))

    def truncate(self, fd: int, size: int) -> None:
        with self._turn():
            super().truncate(fd, size)
            self.log.append(Event("truncate", self._of(fd), offset=size))

    def stamp(self, fd: int, path: str, mtime_ns: int) -> None:
        with self._turn():
            super().stamp(fd, path, mtime_ns)
            self.log.append(Event("stamp", self._of(fd), mtime_ns=os.fstat(fd).st_mtime_ns))

    def sync(self, fd: int) -> None:
        with self._turn():
            self.log.append(Event("sync", self._of(fd)))

    def sync_folder(self, folder: s3mini.Folder) -> None:
        with self._turn():
            self.log.append(Event("sync_folder", self._of(folder)))

    def rename(self, path: str, folder: s3mini.Folder, name: str) -> None:
        with self._turn():
            source, old_name = os.path.split(path)
            number = self._numbers[os.lstat(path).st_ino]
            origin = self._of(source)
            super().rename(path, folder, name)
            self.log.append(Event("rename", number, self._of(folder), name, origin, old_name))

    def link(self, folder: s3mini.Folder, name: str, path: str) -> None:
        with self._turn():
            super().link(folder, name, path)
            place, new_name = os.path.split(path)
            number = self._numbers[os.lstat(path).st_ino]
            self.log.append(Event("link", number, self._of(place), new_name))

    def unlink(self, folder: s3mini.Folder, name: str) -> None:
        with self._turn():
            super().unlink(folder, name)
            self.log.append(Event("unlink", 0, self._of(folder), name))

    def mkdir(self, folder: s3mini.Folder, name: str) -> None:
        with self._turn():
            super().mkdir(folder, name)
            number = self._new(os.stat(os.path.join(folder.path, name)).st_ino)
            self.log.append(Event("mkdir", number, self._of(folder), name))

    def make_temp(self, folder: str) -> None:
        with s3mini.Folder.open(os.path.dirname(folder)) as room:
            with contextlib.suppress(FileExistsError):
                self.mkdir(room, os.path.basename(folder))

    def rmdir(self, folder: s3mini.Folder, name: str) -> None:
        with self._turn():
            super().rmdir(folder, name)
            self.log.append(Event("rmdir", 0, self._of(folder), name))

    def keeps_order(self, path: str) -> bool:
        return False  # whatever the disk of this machine does


class Ordered(Recorder):
    """A file layer that says: this disk makes changes of names in order. The model believes it."""

    is_ordered = True

    def keeps_order(self, path: str) -> bool:
        return True


class Forgetful(Recorder):
    """A file layer that leaves out one kind of fsync: `forgets(log, fsync)` says which."""

    def __init__(
        self, root: Union[str, Path], forgets: Callable[[list[Event], Event], bool]
    ) -> None:
        super().__init__(root)
        self.forgets = forgets

    def sync(self, fd: int) -> None:
        if not self.forgets(self.log, Event("sync", self._of(fd))):
            super().sync(fd)

    def sync_folder(self, folder: s3mini.Folder) -> None:
        if not self.forgets(self.log, Event("sync_folder", self._of(folder))):
            super().sync_folder(folder)


# -- the disk, as a model ----------------------------------------------------------------------


class Change(NamedTuple):
    """Names in one folder that change together: (name, what it names from now on)."""

    folder: int
    names: tuple[tuple[str, Optional[int]], ...]


Names = dict[int, dict[str, int]]  # folder -> name -> number


@dataclass
class Model:
    """What is surely on the disk, and what may be there too."""

    sure: Names
    files: dict[int, list[File]]  # each state since the last fsync; the first is sure
    pending: list[Change] = field(default_factory=list)

    def apply(self, event: Event) -> None:
        files = self.files.get(event.node, [File(b"", 0)])
        now = files[-1]
        if event.call == "create":
            self.files[event.node] = [File(b"", event.mtime_ns)]
            self._change(event.folder, (event.name, event.node))
        elif event.call == "write":
            files.append(File(overwritten(now.data, event.data, event.offset), now.mtime_ns))
        elif event.call == "truncate":
            files.append(File(now.data[: event.offset], now.mtime_ns))
        elif event.call == "stamp":
            files.append(File(now.data, event.mtime_ns))
        elif event.call == "sync":
            del files[:-1]
        elif event.call == "mkdir":
            self.sure[event.node] = {}
            self._change(event.folder, (event.name, event.node))
        elif event.call == "link":
            self._change(event.folder, (event.name, event.node))
        elif event.call in ("unlink", "rmdir"):
            self._change(event.folder, (event.name, None))
        elif event.call == "rename" and event.source == event.folder:
            self._change(event.folder, (event.old_name, None), (event.name, event.node))
        elif event.call == "rename":
            self._change(event.folder, (event.name, event.node))
            self._change(event.source, (event.old_name, None))
        elif event.call == "sync_folder":
            mine = [c for c in self.pending if c.folder == event.node]
            self.pending = [c for c in self.pending if c.folder != event.node]
            self.sure = with_changes(self.sure, mine)

    def _change(self, folder: int, *names: tuple[str, Optional[int]]) -> None:
        self.pending.append(Change(folder, names))


def overwritten(old: bytes, data: bytes, offset: int) -> bytes:
    return old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]


def with_changes(names: Names, changes: Iterable[Change]) -> Names:
    names = dict(names)
    for folder, entries in changes:
        names[folder] = dict(names[folder])
        for name, number in entries:
            if number is None:
                names[folder].pop(name, None)
            else:
                names[folder][name] = number
    return names


def paths_of(names: Names) -> Iterator[tuple[str, int]]:
    """Every path below the root with its number, folders before what is in them."""
    waiting = [("", ROOT)]
    while waiting:
        path, folder = waiting.pop()
        for name, number in sorted(names[folder].items()):
            inside = f"{path}/{name}" if path else name
            yield inside, number
            if number in names:
                waiting.append((inside, number))


def damages(states: list[File]) -> list[File]:
    """What a power cut may make of a file: its states since the last fsync."""
    if len(states) == 1:
        return states
    contents = {state.data for state in states}
    sure, last = states[0].data, states[-1].data
    if last != sure:
        middle = (len(sure) + len(last)) // 2
        contents |= {last[:middle], sure + bytes(len(last) - len(sure))}
        contents |= {last[:middle] + bytes(len(last) - middle)}
        half = len(last) // 2  # of a file that is written in several places
        contents |= {sure[:half] + last[half:], last[:half] + sure[half:]}
    times = {state.mtime_ns for state in states}
    return [File(data, mtime) for data in sorted(contents) for mtime in sorted(times)]


def subsets(count: int, rng: random.Random) -> Iterator[tuple[bool, ...]]:
    """Which of `count` pending changes have reached the disk."""
    if count <= ALL_SUBSETS:
        yield from itertools.product((True, False), repeat=count)
        return
    for number in range(count + 1):  # in order, as a journal writes them; and all but one
        yield tuple(n < number for n in range(count))
        yield tuple(n != number for n in range(count))
    for _ in range(SAMPLED):
        yield tuple(rng.random() < 0.5 for _ in range(count))


Tree = tuple[tuple[str, Optional[File], int], ...]  # path, None for a folder, number


@dataclass(frozen=True)
class State:
    """One tree that a power cut may leave."""

    prefix: int  # so many of the log's events had happened
    tree: Tree
    allowed: Mapping[Any, frozenset[Any]]  # thing -> the versions it may have
    recorder: Recorder = field(repr=False, compare=False)

    def make(self, root: str) -> None:
        """Make real files of it. Two names of one file become hard links."""
        os.mkdir(root)
        made: dict[int, str] = {}
        for path, file, number in self.tree:
            place = f"{root}/{path}"
            if file is None:
                os.mkdir(place)
            elif number in made:
                os.link(made[number], place)
            else:
                made[number] = place
                with open(place, "wb") as out:
                    out.write(file.data)
                os.utime(place, ns=(file.mtime_ns, file.mtime_ns))

    def __str__(self) -> str:
        """For the reader of a failed test: the calls made, and the files left."""
        lines = [f"  {number:3} {event}" for number, event in enumerate(self.recorder.log, 1)]
        lines.insert(self.prefix, "  ... the power cut is here ...")
        lines += ["the disk then:"]
        for path, file, number in self.tree:
            shown = (
                "/"
                if file is None
                else f" #{number} {file.mtime_ns} {b' '.join(file.data.split())!r}"
            )
            lines.append(f"  {path}{shown}")
        return "\n".join(lines)


def crash_states(recorder: Recorder, seed: int = 1, only_after: str = "") -> Iterator[State]:
    """Every distinct state; with only_after="acknowledged" those after the last such mark."""
    rng = random.Random(seed)
    model = Model(dict(recorder.folders), {n: [file] for n, file in recorder.files.items()})
    allowed: dict[Any, frozenset[Any]] = {}
    seen: set[Any] = set()
    last = max((n for n, e in enumerate(recorder.log, 1) if e.call == only_after), default=0)
    for prefix, event in enumerate(recorder.log, 1):  # the first one says what is there
        model.apply(event)
        allowed = _allowed(allowed, event)
        if prefix < last:
            continue
        marks = tuple((thing, versions) for thing, versions in allowed.items())
        for tree in _trees(model, rng, recorder.is_ordered):
            key = (marks, tuple(item for item in tree if not _in_tmp(item[0])))
            if key not in seen:
                seen.add(key)
                yield State(prefix, tree, allowed, recorder)


def _allowed(now: Mapping[Any, frozenset[Any]], event: Event) -> dict[Any, frozenset[Any]]:
    """Old or new while an operation runs, new when it is acknowledged."""
    result = dict(now)
    for thing, (old, new) in event.changes.items():
        if event.call == "began":
            result[thing] = result.get(thing, frozenset([old])) | {new}
        else:
            result[thing] = frozenset([new])
    return result


def _in_tmp(path: str) -> bool:
    return path.startswith("/".join(TMP) + "/")


def _trees(model: Model, rng: random.Random, is_ordered: bool) -> Iterator[Tree]:
    """Every combination of pending changes, and of damages to the files that are then there."""
    if is_ordered:
        for number in range(len(model.pending) + 1):
            yield from _trees_of(model, rng, with_changes(model.sure, model.pending[:number]))
        return
    tmp = model.sure.get(model.sure[ROOT].get(TMP[0], 0), {}).get(TMP[1])
    aside = [change for change in model.pending if change.folder == tmp]
    order = {id(change): number for number, change in enumerate(model.pending)}
    rest = [change for change in model.pending if change.folder != tmp]
    for chosen in subsets(len(rest), rng):
        share = rng.choice((0.0, 0.5, 1.0))
        taken = [change for change, there in zip(rest, chosen) if there]
        taken += [change for change in aside if rng.random() < share]
        names = with_changes(model.sure, sorted(taken, key=lambda change: order[id(change)]))
        yield from _trees_of(model, rng, names)


def _trees_of(model: Model, rng: random.Random, names: Names) -> Iterator[Tree]:
    """With these names, every combination of damages to the files."""
    places = list(paths_of(names))
    read = {n for path, n in places if n in model.files and not _in_tmp(path)}
    choices = {n: damages(model.files[n]) for n in sorted(read)}
    for files in _combinations(choices, rng):
        yield tuple(
            (path, None if n in names else files.get(n, model.files[n][-1]), n)
            for path, n in places
            if n in names or n in model.files
        )


def _combinations(choices: dict[int, list[File]], rng: random.Random) -> Iterator[dict[int, File]]:
    total = 1
    for states in choices.values():
        total *= len(states)
    if total <= SAMPLED:
        for files in itertools.product(*choices.values()):
            yield dict(zip(choices, files))
    else:
        for _ in range(SAMPLED):
            yield {number: rng.choice(states) for number, states in choices.items()}


# -- operations under test, and what they must leave -------------------------------------------


class Version(NamedTuple):
    """An object as a client sees it: all of it, so that a mix of two versions is neither."""

    data: bytes
    entry: str  # everything that its sidecar says, but the generation


def entry_of(data: bytes, name: str, **more: Any) -> s3mini.Entry:
    """An entry that nobody could guess: an adopted file would not have it."""
    md5 = hashlib.md5(data).hexdigest()
    given: dict[str, Any] = {
        "headers": {"content-type": f"text/x-{name}", "cache-control": name},
        "metadata": {"name": name},
        "tags": {"tag": name},
        **more,
    }
    return s3mini.Entry(len(data), given.pop("etag", md5), md5, 1_600_000_000, **given)


def version_of(data: bytes, entry: s3mini.Entry) -> Version:
    known = entry._replace(mtime_ns=0, ino=0)._asdict()
    return Version(data, repr(sorted(known.items())))


class PartOf(NamedTuple):
    """A part of an upload, as a thing that has versions: the MD5 of its bytes, or None."""

    upload: str
    key: str
    number: int


class BytesSource:
    """Bytes as a body's source, in pieces: a file is more than one write."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int) -> bytes:
        size = min(size, 24)
        piece, self._data = self._data[:size], self._data[size:]
        return piece


def body_of(data: bytes) -> s3mini.Body:
    return s3mini.Body(BytesSource(data), s3mini.Promise(length=len(data)))


def put(store: s3mini.Store, key: str, data: bytes, name: str) -> s3mini.Entry:
    return store.put(key, body_of(data), lambda: entry_of(data, name), s3mini.no_check)


def read_object(store: s3mini.Store, key: str) -> Optional[Version]:
    """The object, or None; AssertionError when headers and body do not belong together."""
    try:
        found = store.open(key)
    except s3mini.S3Error as error:
        if error.code != "NoSuchKey":
            raise
        return None
    with open(found.fd, "rb") as file:
        data = file.read()
        assert found.entry.describes(file.fileno()), f"{key}: the bytes are damaged"
    assert found.entry.size == len(data), f"{key}: {len(data)} bytes, not {found.entry.size}"
    return version_of(data, found.entry)


def read_part(store: s3mini.Store, thing: PartOf) -> Optional[str]:
    try:
        parts = store.uploads.parts(store.uploads.find(thing.upload, thing.key))
    except s3mini.S3Error as error:
        if error.code != "NoSuchUpload":
            raise
        return None
    for part in parts:
        if part.number == thing.number:
            folder = Path(store.room) / "uploads" / thing.upload
            data = (folder / (s3mini.WHOLE if part.offset >= 0 else part.name)).read_bytes()
            start = max(0, part.offset)
            md5 = hashlib.md5(data[start : start + part.size]).hexdigest()
            assert md5 == part.md5, f"{thing}: the bytes are damaged"
            return md5
    return None


def read_thing(store: s3mini.Store, thing: Union[str, PartOf]) -> Any:
    return read_part(store, thing) if isinstance(thing, PartOf) else read_object(store, thing)


def listed(store: s3mini.Store) -> dict[str, Optional[s3mini.Entry]]:
    items = store.scan("", s3mini.Cursor())
    return {item.key: store.peek(item) for item in items}


def is_object(store: s3mini.Store, thing: Union[str, PartOf]) -> bool:
    """Whether it is a part of an upload that is an object by now: tidying up ends that."""
    with contextlib.suppress(s3mini.S3Error):
        return isinstance(thing, PartOf) and store.head(thing.key).upload == thing.upload
    return False


def check_state(root: str, allowed: Mapping[Any, frozenset[Any]]) -> dict[Any, Any]:
    """What the store makes of the files in `root`; AssertionError when that is not allowed.

    Then it tidies up as at a start, and goes on to work: a PUT and a DELETE of each key.
    """
    store = s3mini.Store(root, s3mini.Disk(durable=False))
    found = {}
    for thing, versions in allowed.items():
        found[thing] = read_thing(store, thing)
        assert found[thing] in versions, f"{thing}: neither old nor new: {found[thing]}"
    objects = {key: v for key, v in found.items() if isinstance(key, str) and v is not None}
    _check_listing(store, objects)

    store = s3mini.Store(root, s3mini.Disk(durable=False))
    store.clean()
    assert os.listdir(os.path.join(store.room, "tmp")) == []
    left = {thing: None if is_object(store, thing) else found[thing] for thing in found}
    assert left == {thing: read_thing(store, thing) for thing in found}, "hurt by tidying up"
    _check_listing(store, objects)

    for key in [key for key in found if isinstance(key, str)]:
        put(store, key, b"and on", "next")
        wanted = version_of(b"and on", entry_of(b"and on", "next"))
        assert read_object(store, key) == wanted, f"{key}: cannot be written any more"
    for key in [key for key in found if isinstance(key, str)]:
        store.delete(key, s3mini.no_check)
        assert read_object(store, key) is None, f"{key}: cannot be deleted any more"
    assert listed(store) == {}
    return found


def _check_listing(store: s3mini.Store, objects: Mapping[str, Version]) -> None:
    entries = listed(store)
    assert sorted(objects) == sorted(entries), "a listing and GET differ"
    for key, entry in entries.items():
        assert entry, f"{key} is listed without an entry"
        assert version_of(objects[key].data, entry) == objects[key], f"{key}: listed otherwise"


class Bench:
    """A bucket, operations on it that are recorded, and the check of all that may become of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = str(folder / "bucket")
        self.store = s3mini.Store(self.root, s3mini.Disk(durable=False))
        self.recorder: Recorder
        self.things: dict[Any, Any] = {}  # thing -> its version now
        self._numbers = itertools.count()

    def create(self) -> None:
        os.makedirs(self.folder, exist_ok=True)
        self.store.create()

    def prepare(
        self, key: str, data: bytes = b"old content of this key", name: str = "old"
    ) -> None:
        """An object that was there before; a power cut cannot touch it."""
        put(self.store, key, data, "old")
        self.things[key] = version_of(data, entry_of(data, "old"))

    def record(self, make: Callable[[str], Recorder] = Recorder) -> None:
        """From here on every call is logged; what is there now is surely on the disk."""
        self.recorder = make(self.root)
        self.store = s3mini.Store(self.root, self.recorder)
        self.recorder.mark("began", {thing: (v, v) for thing, v in self.things.items()})

    @contextlib.contextmanager
    def operation(self, changes: Mapping[Any, Any]) -> Iterator[s3mini.Store]:
        """One request that is to change these things; acknowledged if the block ends well."""
        marks = {thing: (self.things.get(thing), new) for thing, new in changes.items()}
        self.recorder.mark("began", marks)
        yield self.store
        self.recorder.mark("acknowledged", marks)
        self.things.update(changes)

    def put(self, key: str, data: bytes, name: str) -> None:
        with self.operation({key: version_of(data, entry_of(data, name))}) as store:
            put(store, key, data, name)

    def delete(self, *keys: str) -> None:
        with self.operation(dict.fromkeys(keys)) as store:
            for result in store.delete_many([(key, s3mini.no_check) for key in keys]):
                assert not isinstance(result, Exception), result

    def states(self, only_after: str = "") -> Iterator[tuple[State, str]]:
        """Each state, and a folder that holds it until the next one is asked for."""
        for state in crash_states(self.recorder, only_after=only_after):
            root = str(self.folder / f"state{next(self._numbers)}")
            state.make(root)
            try:
                yield state, root
            finally:
                shutil.rmtree(root)

    def damage(self, only_after: str = "") -> tuple[int, str]:
        """(states checked, the first one that must not be, as text, or "")."""
        count = 0
        for state, root in self.states(only_after):
            count += 1
            try:
                check_state(root, state.allowed)
            except (AssertionError, s3mini.S3Error, OSError, ValueError) as error:
                return count, f"{type(error).__name__}: {error}\n{state}"
        return count, ""

    def unrecorded(self) -> list[str]:
        """Paths where the real files' bytes differ from the log: changed past the file layer."""
        recorder = self.recorder
        model = Model(dict(recorder.folders), {n: [f] for n, f in recorder.files.items()})
        for event in recorder.log:
            model.apply(event)
        names = with_changes(model.sure, model.pending)
        fresh = Recorder(self.root)
        told = {path: model.files.get(n, [File(b"/", 0)])[-1].data for path, n in paths_of(names)}
        real = {p: fresh.files.get(n, File(b"/", 0)).data for p, n in paths_of(fresh.folders)}
        return sorted(path for path in {*told, *real} if told.get(path) != real.get(path))
