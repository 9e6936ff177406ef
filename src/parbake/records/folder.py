"""Records: one JSON file beside each artefact says what it is, where it came from and whether it was proven.

The file is an in-toto statement (``statements``). It can be signed: then a DSSE envelope around it lies beside it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from parbake.core import atomic
from parbake.core.access import PRIVATE
from parbake.core.blocks import BlockList
from parbake.core.errors import DeadlineExceeded, EnvironmentProblem, InputError
from parbake.core.events import Events
from parbake.core.files import read_file
from parbake.core.interrupts import guarded
from parbake.core.model import FILE_NAME
from parbake.core.signing import Signer, envelope
from parbake.core.workspace import WORK, discard, leftovers, lock, publish, remove_tree, room_for, work_folder
from parbake.records.record import BLOCKS_SUFFIX, SUFFIX, TRACE_SUFFIX, Record
from parbake.records.statements import to_statement

if TYPE_CHECKING:
    from parbake.coldstart.trace import Trace

ENVELOPE_SUFFIX = ".intoto.jsonl"
"""Of the signed record: a DSSE envelope around it, for parbake and for ``cosign verify-blob-attestation``."""
DETACHED_SUFFIX = ".json.sig"
"""Of the signature over the record's bytes alone, in base64: what ``cosign verify-blob`` takes."""
_UNFINISHED = "unfinished"
_LARGEST = 64 << 20  # bytes of a record: 2,000 images in 500 layers each
_FILE_NAME = re.compile(FILE_NAME)


def write(folder: Path, record: Record, signer: Signer | None = None, *, durable: bool = True) -> Path:
    """Write the record beside its artefact, at once or not at all; return its path. Raises DiskFull.

    With a ``signer`` its signatures go first: what is signed is never older than what is not, and a run that is killed
    between the two is mended by the next bake (``genuine.mend``). Raises InputError where a signed record would be left
    without a signature.
    """
    need_signer(folder / record.artefact, signer)
    path, text = folder / record.file_name, statement(record)
    files = [(path, text)]
    if signer:
        detached = base64.b64encode(signer.sign(text)) + b"\n"
        files = [
            (folder / f"{record.artefact}{ENVELOPE_SUFFIX}", envelope(text, signer)),
            (folder / f"{record.artefact}{DETACHED_SUFFIX}", detached),
            *files,
        ]
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else PRIVATE
    with room_for(path):
        for target, content in files:
            atomic.replace(target, content, mode=mode, durable=durable)
    return path


def is_signed(artefact: Path) -> bool:
    """Whether there is a signed record of an artefact, by whomever."""
    return artefact.with_name(artefact.name + ENVELOPE_SUFFIX).exists()


def need_signer(artefact: Path, signer: Signer | None) -> None:
    """Raise InputError when an artefact's record is signed, and nothing is there to sign a changed one."""
    if signer is None and is_signed(artefact):
        raise InputError(
            f"the record of {artefact.name} is signed, and there is no key to sign the changed one with",
            hint="name the key in the Bakefile: sign: {key: FILE}",
        )


def statement(record: Record) -> bytes:
    """Return the content of a record's file, which is also what is signed."""
    return (json.dumps(to_statement(record), indent=2) + "\n").encode()


def in_use(
    folder: Path, artefact: str, *, timeout: float = 3600.0, waiting: Callable[[], object] = lambda: None
) -> AbstractContextManager[None]:
    """Keep other parbakes from changing an artefact and its record meanwhile; see ``workspace.lock``."""
    return lock(folder / WORK / f"{artefact}.lock", what=artefact, timeout=timeout, waiting=waiting)


def waiting(folder: Path, key: str) -> Path:
    """Return the folder in which a finished disk waits for its verdict (``keep``); there may be none."""
    return folder / WORK / key


@guarded
def keep(
    made: Path, record: Record, folder: Path, work: Path, *,
    blocks: BlockList | None = None, trace: Trace | None = None, signer: Signer | None = None, durable: bool = True,
) -> Path:  # fmt: skip
    """Let a finished disk wait, with its blocks, trace and record, whole or not at all; return its path.

    It has no place among the artefacts in ``folder`` yet: ``publish_artefact`` gives it one, also in the next run when
    this one is killed before; where ``durable``, also after a power failure. Raises DiskFull.
    """
    target, draft = waiting(folder, record.key), work / "waiting"
    with room_for(folder / record.artefact):
        draft.mkdir(mode=0o700)
        made.chmod(PRIVATE)
        made.rename(draft / record.artefact)
        if blocks is not None:
            blocks.write(blocks_path(draft / record.artefact), durable=False)  # it is synced with the folder
        if trace is not None:
            _save(trace, draft / record.trace_name)
        write(draft, record, signer, durable=False)
        remove_tree(target)
        if durable:
            publish(draft, target)
        else:
            draft.rename(target)
    return target / record.artefact


@guarded
def publish_artefact(kept: Path, record: Record, folder: Path, work: Path, *, signer: Signer | None = None) -> Path:
    """Let a disk that waits (``keep``) appear under its name, with its blocks, trace and record; return its path.

    The record is what makes it an artefact: it goes first when both are replaced, and it comes last. ``work`` is the
    run's work folder, which ``sweep`` asks when the run is killed between the two. Raises DiskFull; nothing waits then.
    """
    artefact = folder / record.artefact
    try:
        with room_for(artefact):
            _mark(work, [record.artefact])
            (folder / record.file_name).unlink(missing_ok=True)
        for path in (blocks_path(artefact), *_about(artefact)):  # those of the artefact that is replaced
            path.unlink(missing_ok=True)
        try:
            publish(kept, artefact)
            for path in (blocks_path(artefact), folder / record.trace_name):
                with suppress(FileNotFoundError):
                    publish(kept.with_name(path.name), path)
            write(folder, record, signer)
        except BaseException:
            for path in _files(artefact):
                path.unlink(missing_ok=True)
            raise
    finally:
        remove_tree(kept.parent)
    return artefact


@guarded
def take_over(
    folder: Path, record: Record, files: Mapping[str, bytes], work: Path, *, made: Path | None = None
) -> None:
    """Let an artefact that another machine has made appear here: ``files`` are those beside it by suffix, record last.

    ``made`` is its own content, None where that lies in a cloud, or is here already. Raises DiskFull.
    """
    artefact = folder / record.artefact
    with room_for(artefact):
        if made:
            _mark(work, [record.artefact])
            (folder / record.file_name).unlink(missing_ok=True)
        for path in (blocks_path(artefact), *_about(artefact)):
            if path.name.removeprefix(record.artefact) not in files:
                path.unlink(missing_ok=True)
        try:
            if made:
                publish(made, artefact)
            for suffix in sorted(files, key=SUFFIX.__eq__):
                atomic.replace(artefact.with_name(artefact.name + suffix), files[suffix], mode=PRIVATE)
        except BaseException:
            for path in _files(artefact) if made else ():
                path.unlink(missing_ok=True)
            raise


def _save(trace: Trace, path: Path) -> None:
    from parbake.coldstart.trace import save  # loads only where something was rehearsed

    save(trace, path)


def write_published(
    record: Record,
    folder: Path,
    *,
    blocks: BlockList | None = None,
    trace: Trace | None = None,
    signer: Signer | None = None,
) -> Path:
    """Write the record of an artefact that lies in a cloud, with the list of its blocks and its trace.

    Returns its place as a name. The record comes last: a run that is killed before finds all of it in the cloud again.
    """
    artefact = folder / record.artefact
    if blocks is not None:
        blocks.write(blocks_path(artefact))
    if trace is not None:
        _save(trace, folder / record.trace_name)
    if signer is None:  # another artefact of that name was signed, and this one is not
        _forget_signatures(artefact)
    write(folder, record, signer)
    return artefact


def blocks_path(artefact: Path) -> Path:
    """Return where the list of a raw artefact's blocks lies."""
    return artefact.with_name(artefact.name + BLOCKS_SUFFIX)


def everything(artefact: Path) -> tuple[Path, ...]:
    """Return the files that an artefact has, or may have: itself, what lies beside it, and its record."""
    return *_files(artefact), artefact.with_name(artefact.name + SUFFIX)


def _files(artefact: Path) -> tuple[Path, ...]:
    """Return what is an artefact's besides its record."""
    return artefact, blocks_path(artefact), *_about(artefact)


def _about(artefact: Path) -> tuple[Path, ...]:
    """Return what says something of an artefact and goes when another takes its place: a trace, signatures."""
    return tuple(artefact.with_name(artefact.name + each) for each in (TRACE_SUFFIX, ENVELOPE_SUFFIX, DETACHED_SUFFIX))


def _forget_signatures(artefact: Path) -> None:
    for each in (ENVELOPE_SUFFIX, DETACHED_SUFFIX):
        artefact.with_name(artefact.name + each).unlink(missing_ok=True)


def blocks_of(artefact: Path, record: Record) -> BlockList | None:
    """Return the list of a raw artefact's blocks, None where it is missing or not the record's."""
    with suppress(InputError):
        listed = BlockList.read(blocks_path(artefact))
        if record.blocks is not None and listed.digest() == record.blocks.digest:
            return listed
    return None


def _mark(work: Path, artefacts: Iterable[str]) -> None:
    atomic.replace(work / _UNFINISHED, "".join(f"{name}\n" for name in artefacts))


def sweep(folder: Path, *, kept: bool = False) -> tuple[Path, ...]:
    """Remove what dead runs left in a folder of artefacts, with ``kept`` also what waits or was kept on purpose."""
    removed: list[Path] = []
    for work in leftovers(folder, kept=kept):
        with suppress(DeadlineExceeded):  # a living run is at what that one did not finish
            removed += _finish_dead(work, folder)
            discard(work)
            removed.append(work)
    with suppress(FileNotFoundError):
        removed += atomic.sweep(folder)
    for path in sorted((folder / WORK).glob(f"{'[0-9a-f]' * 64}/*{SUFFIX}")) if kept else ():
        with suppress(DeadlineExceeded), in_use(folder, path.name.removesuffix(SUFFIX), timeout=0):
            remove_tree(path.parent)
            removed.append(path.parent)
    return tuple(removed)


def _finish_dead(work: Path, folder: Path) -> tuple[Path, ...]:
    """Remove the artefacts in ``folder`` that a dead run was adding or removing and that have no record.

    ``work`` is the dead run's work folder. Files that have no record for another reason are somebody's, and stay, and
    so does what lies in other folders. Raises DeadlineExceeded when a living run is at one of them.
    """
    try:
        names = (work / _UNFINISHED).read_text().split("\n")
    except FileNotFoundError:
        return ()
    removed = []
    for name in filter(_FILE_NAME.fullmatch, names):
        artefact = folder / name
        with in_use(folder, name, timeout=0):
            if (folder / f"{name}{SUFFIX}").exists():
                continue
            for path in filter(Path.exists, _files(artefact)):
                path.unlink()
                removed.append(path)
    return tuple(removed)


def read(path: Path) -> Record:
    """Read a record; raises InputError when it is missing or not a record, EnvironmentProblem without access."""
    try:
        return parse(text_of(path), path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist", hint="`parbake list` shows all records") from None
    except PermissionError:
        raise _no_access(path) from None
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}", hint="give a record, an artefact or its name"
        ) from None


def text_of(path: Path) -> bytes:
    """Return the bytes of a record or its envelope, which others may have put there. Raises OSError."""
    return read_file(path, _LARGEST)


def parse(text: bytes, path: Path) -> Record:
    """Read the text of a record, which is that of ``path``; raises InputError when it is not a record."""
    try:
        return Record.model_validate(json.loads(text)["parbake"])
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path} is not a parbake record: {reason}", hint="give a record, an artefact or its name"
        ) from error


def _no_access(path: Path) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{path} belongs to another user, who does not share it",
        hint="run parbake with sudo; `readable_by: everyone` in the Bakefile lets everybody read what is baked",
    )


def find(folder: Path) -> tuple[tuple[Path, Record], ...]:
    """Return every record in a folder whose artefact is there too, or published in a cloud; oldest first.

    Of what was to be published and has failed its verification, the record alone is left.
    """
    found = []
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise _no_access(folder)
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            record = read(path)
        except InputError:
            continue  # other people's JSON
        failed = record.plan.artefact.in_cloud and record.verdict is not None and not record.verdict.passed
        if record.published or failed or (folder / record.artefact).exists():
            found.append((path, record))
    return tuple(sorted(found, key=lambda item: (item[1].finished_at, item[1].artefact)))


def locate(
    selector: str, folder: Path, events: Events | None = None, *, verified: bool = False
) -> tuple[Path, Record | None]:
    """Find an artefact by record path, artefact path, or the start of a name or key in ``folder``.

    A Bakefile's whole name means the ``newest`` artefact of it. Returns the artefact's path and its record (None for a
    file that has none); ``events`` are told which it is. Raises InputError when nothing or more than one thing fits.
    """
    artefact, record = _located(selector, folder, verified=verified)
    if record and events:
        tell(record, events)
    return artefact, record


def tell(record: Record, events: Events) -> None:
    """Say which record a command goes on with."""
    proven = "not verified" if record.verdict is None else "verified" if record.verified else "FAILED verification"
    if record.verdict and record.verdict.accelerator == "canary":
        proven = "proven by the canary"
    events.take(record.artefact, f"takes {record.artefact}, baked {record.finished_at}, {proven}")


def newest(found: Iterable[tuple[Path, Record]], name: str, *, verified: bool = False) -> tuple[Path, Record] | None:
    """Return the artefact that a Bakefile's name means among those found, oldest first; None: it has none.

    With ``verified``, as for rollouts, it is the newest one that is, if any is. Pure.
    """
    of_name = [item for item in found if item[1].plan.name == name]
    good = [item for item in of_name if item[1].verified] if verified else []
    return next(reversed(good or of_name), None)


def _located(selector: str, folder: Path, *, verified: bool) -> tuple[Path, Record | None]:
    path = Path(selector)
    if path.is_file():
        for suffix in (BLOCKS_SUFFIX, ENVELOPE_SUFFIX, DETACHED_SUFFIX):
            path = path.with_name(path.name.removesuffix(suffix))
        if path.suffix == SUFFIX:
            return path.parent / read(path).artefact, read(path)
        beside = path.with_name(path.name + SUFFIX)
        return path, read(beside) if beside.exists() else None
    found = find(folder)
    fitting = [item for item in found if item[1].artefact.startswith(selector) or item[1].key.startswith(selector)]
    if meant := newest(found, selector, verified=verified):
        fitting = [meant]
    if not fitting:
        raise InputError(f"{selector!r}: no such record or file", hint=f"`parbake list` shows the records in {folder}")
    if len(fitting) > 1:
        last = fitting[-1][1].artefact
        raise InputError(f"{selector!r} matches {len(fitting)} records", hint=f"write more of it, such as {last}")
    place, record = fitting[0]
    return place.parent / record.artefact, record


def locate_record(
    selector: str,
    folder: Path,
    events: Events | None = None,
    *,
    verified: bool = False,
    hint: str = "`parbake list` shows all records",
) -> tuple[Path, Record]:
    """Find an artefact that must have a record, see ``locate``; raises InputError for a file without one."""
    artefact, record = locate(selector, folder, events, verified=verified)
    if record is None:
        raise InputError(f"{artefact} has no record beside it", hint=hint)
    return artefact, record


def remove(folder: Path, going: Sequence[Record]) -> tuple[str, ...]:
    """Remove artefacts and all beside them, record first: without its record it no longer counts as one.

    Returns the artefacts that stay, since another parbake is working on them.
    """
    if not going:
        return ()
    busy = []
    with work_folder(folder, "prune") as work:
        _mark(work, [record.artefact for record in going])
        for record in going:
            try:
                with in_use(folder, record.artefact, timeout=0):
                    (folder / record.file_name).unlink(missing_ok=True)
                    for path in _files(folder / record.artefact):
                        path.unlink(missing_ok=True)
            except DeadlineExceeded:
                busy.append(record.artefact)
    return tuple(busy)
