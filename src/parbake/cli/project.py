"""What commands take from the Bakefile: it is loaded once, and only if something is asked of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parbake.cli.app import DEFAULT_FILE
from parbake.core.errors import BakefileError, InputError
from parbake.core.events import Events

if TYPE_CHECKING:
    from parbake.bakefile import Bakefile, RetentionSection
    from parbake.bakefile.salvage import ProofSettings
    from parbake.core.signing import Signer
    from parbake.records.store import Shared


Store = Annotated[
    str, typer.Option(help="The store to share artefacts through, instead of the Bakefile's.", metavar="ADDRESS")
]
CopyRoles = Annotated[
    list[str] | None,
    typer.Option(
        "--copy-role",
        help="The role of a region's copy, besides those of `aws.copy_roles`; may be given several times.",
        metavar="REGION=ARN",
    ),
]


def overrides(
    platform: str, store: str, copy_roles: Sequence[str] | None = None, images: Iterable[str] = ()
) -> dict[str, str]:
    """Return what options change in the Bakefile: what it is loaded with. ``images`` are baked without one.

    Raises BadReference for an image that is none.
    """
    from parbake.bakefile import COPY_ROLES, ONLY_IMAGES, store_address
    from parbake.core.reference import Reference

    address = store_address(store) if store else ""
    distinct = {str(Reference.parse(image)): image for image in images}
    found = {
        "platform": platform,
        "store": address,
        COPY_ROLES: " ".join(copy_roles or ()),
        ONLY_IMAGES: " ".join(distinct.values()),
    }
    return {key: value for key, value in found.items() if value}


@contextmanager
def needed(why: str) -> Iterator[None]:
    """Say why a command cannot do without the Bakefile, where that is wrong or missing."""
    try:
        yield
    except BakefileError as error:
        raise BakefileError(error.source, error.problems, hint=f"{why}: correct it, or name another with -f") from None


class Project:
    """The Bakefile of one call, and what follows from it: folder, store, keys, retention.

    ``selectors`` are the records that the user names. If they are files, the folder is theirs, and a Bakefile that
    happens to lie in the current folder may have mistakes: they are a warning, and what it says about proofs counts as
    far as it can be read. A Bakefile that is named by ``path`` must be right. ``overrides`` replace keys of it.
    """

    def __init__(
        self,
        path: Path,
        selectors: Iterable[str] = (),
        *,
        overrides: Mapping[str, str] | None = None,
        events: Events | None = None,
    ) -> None:
        self._path, self._overrides, self._events = path, overrides, events or Events()
        named = [Path(selector) for selector in selectors]
        self._files = named if named and all(each.is_file() for each in named) else []

    @cached_property
    def bakefile(self) -> Bakefile | None:
        """The Bakefile; None where it is not named and the usual one is not there."""
        if self._path == DEFAULT_FILE and not self._path.exists():
            return None
        return self.need_bakefile()

    @cached_property
    def _proof(self) -> Bakefile | ProofSettings | None:
        """What is said about proofs: by the Bakefile, or by what can be read of it where a file is named."""
        try:
            return self.bakefile
        except InputError as error:
            if self._path != DEFAULT_FILE or not self._files:
                raise
            from parbake.bakefile.salvage import load_proof_settings

            found = load_proof_settings(self._path)
            mistakes = error.message.splitlines()[0]
            self._events.warn(f"{mistakes}; " + ("only its `trust`, `sign` and `verify` count" if found else "ignored"))
            return found

    def named(self, selector: str) -> str:
        """Return what selects a record: without any it is the Bakefile's name, which means its newest artefact."""
        if selector:
            return selector
        if self.bakefile is None:
            raise InputError(
                "no record is named, and there is no Bakefile whose newest one it could be",
                hint="name a record (`parbake list` shows them), or a Bakefile with -f",
            )
        return self.bakefile.name

    def need_bakefile(self) -> Bakefile:
        """Return the Bakefile; raises BakefileError with all that is wrong in it, InputError when there is none."""
        from parbake.bakefile import load

        return load(self._path, self._overrides)

    def output(self, *, refresh: bool = True) -> Path:
        """Return the folder for artefacts: the Bakefile's, or the default one where there is no Bakefile.

        ``refresh`` brings the records there that the Bakefile's store has.
        """
        if self._files:
            return self._files[0].parent
        if self.bakefile is None:
            return Path("artefacts")
        if not refresh:
            return self.bakefile.output
        from parbake.records import store

        return store.refreshed_output(self.bakefile)

    def shared(self) -> Shared | None:
        """Return what the Bakefile's artefacts are shared through; None where it names no store, or for a file."""
        if self._files or self.bakefile is None:
            return None
        from parbake.records.store import session_store

        return session_store(self.bakefile, self._events)

    def signer(self) -> Signer | None:
        """Return what signs records as the Bakefile says, tried out; None where it says nothing."""
        if self._proof is None:
            return None
        from parbake.records import genuine

        return genuine.open_signer(self._proof)

    @property
    def trust(self) -> tuple[Path, ...]:
        """The public keys of which one must have signed a record; none where the Bakefile names none."""
        return self._proof.trust if self._proof else ()

    @property
    def readable(self) -> Bakefile | None:
        """The Bakefile; None where there is none, and where a file is named and the one that lies here has mistakes."""
        from parbake.bakefile import Bakefile

        return self._proof if isinstance(self._proof, Bakefile) else None

    @property
    def node_image(self) -> Path | None:
        """The image of a node that volumes are verified on, where the Bakefile names one."""
        return self._proof.verify.base if self._proof else None

    @property
    def retention(self) -> RetentionSection:
        """What is to be kept: the Bakefile's, or the default."""
        from parbake.bakefile import RetentionSection

        return self.bakefile.retention if self.bakefile else RetentionSection()
