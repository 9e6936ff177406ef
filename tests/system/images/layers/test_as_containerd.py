"""The same layers through the engine, into folders and into a volume's file, and through containerd.

The trees must be equal, or all must refuse, but for what ``comparison.STRICTER`` names. ``make fuzz`` goes on from
here.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from parbake.builders.fill import MountedStore, fill, held
from parbake.containerd import Client, Daemon
from parbake.core.errors import LayerError
from parbake.core.events import Events
from standins import tars
from standins.comparison import HOSTS, STRICTER, WAYS, Comparison, Difference, comparison
from standins.hostile import Fate, corpus
from standins.images import image
from standins.stacks import Spec, Stack, build, shrunk, stack
from standins.store import Memory, image_of, plan_of, pull_by_ctr, snapshot_folders
from standins.tars import archive, entry
from standins.trees import differences, scan
from standins.unpacks import FollowingDaemon
from standins.volumes import volume_trees

pytestmark = pytest.mark.root

FOUND = (
    56559746759020, 96198913647388, 2869579345452, 171524284279000, 150995089131328, 241098278099054, 42316280174081,
)  # fmt: skip
"""Stacks that ``make fuzz`` has found a difference in, before it was mended or known by its name."""
STACKS = 100
"""Random stacks for each way, from fixed seeds; ``make fuzz`` compares others for as long as it is let."""


@cache
def attacks() -> dict[str, tuple[bytes, Fate]]:
    return corpus()


@pytest.fixture(scope="module", params=WAYS)
def compare(request: pytest.FixtureRequest) -> Iterator[Comparison]:
    with comparison(request.param) as found:
        yield found


@pytest.mark.slow
def test_random_stacks_of_hostile_layers_come_out_as_in_containerd(compare: Comparison) -> None:
    first = 0 if compare.way == "mounted" else STACKS
    seen = Counter(compare.run(first + number) for number in range(STACKS))
    # It says nothing when nearly all are refused, nor when none is.
    assert seen["equal"] > STACKS // 5
    assert seen["refused"] > STACKS // 5
    assert seen["a name that climbs above the root"]
    assert set(seen) <= {"equal", "refused", *STRICTER}


# A link, a file that goes where it leads, something new on the way there, and a file by the same name again.
NEW_ON_THE_WAY = {
    "a link in a circle": [Spec(b"b", b"2", link=b"c/b/a/.."), Spec(b"b/a", b"2", link=b"../../b/a"), Spec(b"b/f")],
    "a link elsewhere": [
        Spec(b"b", b"2", link=b"c/a/.."), Spec(b"b/f"), Spec(b"d/e/", b"5"), Spec(b"c/a", b"2", link=b"/d/e"),
        Spec(b"b/g"),
    ],
    "a file": [Spec(b"b", b"2", link=b"c/z/y/../.."), Spec(b"b/f"), Spec(b"c/z"), Spec(b"b/g")],
    "a link for a file": [
        Spec(b"c/a"), Spec(b"b", b"2", link=b"c/a/.."), Spec(b"b/f"), Spec(b"d/e/", b"5"),
        Spec(b"c/a", b"2", link=b"/d/e"), Spec(b"b/g"),
    ],
    "a hard link to a link": [
        Spec(b"l", b"2", link=b"/d/e"), Spec(b"b", b"2", link=b"c/a/.."), Spec(b"b/f"), Spec(b"d/e/", b"5"),
        Spec(b"c/a", b"1", link=b"l"), Spec(b"b/g"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("what", NEW_ON_THE_WAY)
def test_a_name_leads_elsewhere_as_soon_as_something_new_is_on_the_way(compare: Comparison, what: str) -> None:
    assert compare.check([NEW_ON_THE_WAY[what]]) in {"equal", "refused"}


@pytest.mark.parametrize("seed", FOUND)
def test_stacks_that_once_differed_come_out_as_in_containerd(compare: Comparison, seed: int) -> None:
    assert compare.run(seed) in {"equal", "refused", HOSTS, *STRICTER}


# Hard links that containerd refuses: what they lead to must be in the layer itself, and is removed first where it has
# the name of the link. The lower layer has a file ``f``, a folder ``d`` with a file ``g``, and ``s``, a link to it.
LOWER = [
    Spec(b"f", data=b"below"),
    Spec(b"d/", b"5", mode=0o755),
    Spec(b"d/g", data=b"below"),
    Spec(b"s", b"2", link=b"d"),
]
TO_THEMSELVES = {
    "by the same name": [Spec(b"f", b"1", link=b"f")],
    "by an absolute name": [Spec(b"f", b"1", link=b"/f")],
    "by a name that is not clean": [Spec(b"./f", b"1", link=b"d/.././/f")],
    "by a slash at its end": [Spec(b"f", b"1", link=b"f/")],
    "in a folder": [Spec(b"d/g", b"1", link=b"d/g")],
    "through a symbolic link": [Spec(b"t", b"2", link=b"d"), Spec(b"t/g", b"1", link=b"d/g")],
    "through a symbolic link, the other way": [Spec(b"t", b"2", link=b"/d"), Spec(b"d/g", b"1", link=b"t/g")],
    "through a symbolic link of the layer below": [Spec(b"s/g", b"1", link=b"d/g")],
    "in the layer itself": [Spec(b"f", data=b"here"), Spec(b"f", b"1", link=b"f")],
    "in the layer itself, through a link": [
        Spec(b"d/g", data=b"here"), Spec(b"t", b"2", link=b"d"), Spec(b"t/g", b"1", link=b"d/g"),
    ],
    "in a circle": [Spec(b"f", b"1", link=b"h"), Spec(b"h", b"1", link=b"f")],
    "under another name": [Spec(b"h", b"1", link=b"f")],
    "under another name, through a symbolic link": [Spec(b"h", b"1", link=b"s/g")],
}  # fmt: skip


@pytest.mark.parametrize("what", TO_THEMSELVES)
def test_a_hard_link_to_itself_across_layers_is_refused_as_by_containerd(compare: Comparison, what: str) -> None:
    assert compare.check([LOWER, TO_THEMSELVES[what]]) == "refused"


def test_hard_links_within_a_layer_come_out_as_in_containerd(compare: Comparison) -> None:
    """Also to what the layer has only now put over a file of the layer below."""
    within = [
        Spec(b"f", data=b"here"), Spec(b"h", b"1", link=b"f"), Spec(b"t", b"2", link=b"d"), Spec(b"d/x", data=b"x"),
        Spec(b"y", b"1", link=b"t/x"), Spec(b"u", b"2", link=b"f"), Spec(b"v", b"1", link=b"u"),
        Spec(b"w", b"1", link=b"u/"),
    ]  # fmt: skip
    assert compare.check([LOWER, within]) == "equal"


def test_what_follows_the_zeros_that_end_an_archive_is_not_unpacked(compare: Comparison) -> None:
    """A folder has no data: what its size speaks of is read as headers, and two blocks of zeros end the archive."""
    outside = [Spec(b"../outside/victim", data=b"written"), Spec(b"../new", b"5")]
    assert compare.check([[Spec(b"d//", data=bytes(1024), form="v7"), *outside]]) == "equal"
    assert compare.check([[Spec(b"d/", b"5", data=bytes(513)), *outside]]) == "equal"
    assert compare.check([[Spec(b"d/", data=bytes(512), form="v7"), *outside]]) == "refused"
    assert compare.check([[Spec(b"d", data=bytes(1024), form="v7"), *outside]]) == "a name that climbs above the root"


# Links to names that no folder can hold: the kernel refuses to look them up. A link is taken, the way over it not.
LONG, FAR = b"n" * 256, b"/".join([b"n" * 255] * 15)
OVER_LONG_NAMES: dict[str, tuple[Stack, str]] = {
    "in the layer below": ([[Spec(b"a/s", b"2", link=LONG)], [Spec(b"a/s/f", b"6")]], "refused"),
    "of 4,000 bytes": ([[Spec(b"a/s", b"2", link=b"n" * 4000)], [Spec(b"a/s/f", b"6")]], "refused"),
    "of 255 bytes": ([[Spec(b"a/s", b"2", link=LONG[1:])], [Spec(b"a/s/f", b"6")]], "equal"),
    "before a name": ([[Spec(b"a/s", b"2", link=LONG + b"/q")], [Spec(b"a/s/f", b"6")]], "refused"),
    "in a folder that is missing": ([[Spec(b"a/s", b"2", link=b"q/" + LONG)], [Spec(b"a/s/f", b"6")]], "equal"),
    "out of it again": ([[Spec(b"s", b"2", link=LONG + b"/../q"), Spec(b"s/f")]], "refused"),
    "out of it again, below": ([[Spec(b"s", b"2", link=LONG + b"/../q")], [Spec(b"s/f")]], "equal"),
    "out of it again, of a hard link": ([[Spec(b"f"), Spec(b"h", b"1", link=LONG + b"/../f")]], "refused"),
    "after a folder had its name": (
        [[Spec(b"r/d/", b"5"), Spec(b"s", b"2", link=b"q"), Spec(b"s/d/", b"5"), Spec(b"s", b"2", link=b"r"),
          Spec(b"q", b"2", link=LONG)]], "equal",
    ),
    "of a folder that is far down": (
        [[Spec(b"a/s", b"2", link=FAR + b"/n")], [Spec(b"a/s/f")]], "a name that links lead into such a folder",
    ),
    "of a folder that is too far down": (
        [[Spec(b"a/s", b"2", link=FAR + b"/" + LONG[16:])], [Spec(b"a/s/f")]], "refused",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", OVER_LONG_NAMES)
def test_links_to_names_that_are_too_long_end_as_in_containerd(compare: Comparison, what: str) -> None:
    made, fate = OVER_LONG_NAMES[what]
    assert compare.check(made) == fate


# ``s`` leads to ``d/q`` where the folder that ``x`` leads to counts, and to ``q`` where only the text does.
TWO_WAYS = [
    Spec(b"d/", b"5", mode=0o711), Spec(b"d/e/", b"5"), Spec(b"d/q/", b"5", mode=0o1777), Spec(b"d/q/f", data=b"1"),
    Spec(b"q/", b"5", mode=0o2750), Spec(b"q/f", data=b"2"), Spec(b"x", b"2", link=b"d/e"),
    Spec(b"s", b"2", link=b"x/../q"),
]  # fmt: skip
OVER_TWO_WAYS: dict[str, Stack] = {
    "relative": [[*TWO_WAYS, Spec(b"s/g")]],
    "absolute": [[*TWO_WAYS, Spec(b"/s/g")]],
    "both": [[*TWO_WAYS, Spec(b"s/g"), Spec(b"/s/f"), Spec(b"s/h/", b"5", mtime=5), Spec(b"/s/h/", b"5", mtime=9)]],
    "further down": [[*TWO_WAYS, Spec(b"s/g"), Spec(b"s/h/k"), Spec(b"s/h/", b"5", mtime=7), Spec(b"/s/h/z/z")]],
    "implied": [TWO_WAYS, [Spec(b"s/g"), Spec(b"s/h/k")]],
    "whiteouts": [[Spec(b"z")], [*TWO_WAYS, Spec(b"/s/.wh.a"), Spec(b"s/.wh.b"), Spec(b"/s/.wh..wh..opq")]],
    "hard links": [[
        *TWO_WAYS,
        *(Spec(b"%d" % number, b"1", link=link) for number, link in enumerate(
            [b"s/f", b"/s/f", b"./s/f", b"d/../s/f", b"//s/f", b"/./s//f", b"s//f", b"/q/f", b"/1"]
        )),
    ]],
}  # fmt: skip


@pytest.mark.parametrize("what", OVER_TWO_WAYS)
def test_absolute_and_relative_names_lead_over_links_as_in_containerd(compare: Comparison, what: str) -> None:
    assert compare.check(OVER_TWO_WAYS[what]) == "equal"


@pytest.mark.parametrize("what", [Spec(b"c/e"), Spec(b"c/e", b"2", link=b"x"), Spec(b"c/e", b"5"), Spec(b"c/.wh.e")])
def test_a_file_without_a_group_gets_no_wrong_one(compare: Comparison, what: Spec) -> None:
    """The kernel gives it that of its folder, which here is known too late where only a layer below describes it."""
    below = [Spec(b"c", b"5", mode=0o2755, gid=65534)]
    nobodys = [replace(what, records={b"gid": b"-1"})]
    assert compare.check([below, nobodys]) == "a file without a group where a layer below hands one down"
    assert compare.check([below, [replace(below[0], gid=7), *nobodys]]) == "equal"
    assert compare.check([[replace(below[0], mode=0o755)], nobodys]) == "equal"
    assert compare.check([below, [Spec(b"c/f"), replace(below[0], records={b"gid": b"-1"}), *nobodys]]) == (
        "a file without a group where a layer below hands one down"
    )


# ``c`` outlives the folder that its file was made in, and has what a layer below handed down there.
OUTLIVES = [Spec(b"b/e/f"), Spec(b"c", b"1", link=b"b/e/f")]
ACL = bytes.fromhex("0200000001000600ffffffff02000500e803000004000400ffffffff10000700ffffffff20000400ffffffff")
HANDED_DOWN: dict[str, tuple[Spec, list[Spec], str]] = {
    "an ACL": (
        Spec(b"b", b"5", records={b"SCHILY.xattr.system.posix_acl_default": ACL}), OUTLIVES,
        "a folder without an entry where a layer below hands down an ACL",
    ),
    "a group": (
        Spec(b"b/e", b"5", mode=0o2755, gid=7), [replace(each, records={b"gid": b"-1"}) for each in OUTLIVES],
        "a file without a group where a layer below hands one down",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HANDED_DOWN)
@pytest.mark.parametrize("after", ["a file", "nothing", "a folder without an entry", "a folder"])
def test_a_hard_link_out_of_a_folder_that_is_gone_takes_nothing_wrong_along(
    compare: Comparison, what: str, after: str
) -> None:
    below, outlives, fate = HANDED_DOWN[what]
    gone = Spec(b"b", b"g") if after != "a file" else Spec(b"b")
    then = {"a folder": [Spec(b"b", b"5")], "a folder without an entry": [Spec(b"b/e/z")]}.get(after, [])
    assert compare.check([[below], [*outlives, gone, *then]]) == fate
    assert compare.check([[replace(below, mode=0o755, records={})], [*outlives, gone, *then]]) == "equal"


CAPABILITY = {b"SCHILY.xattr.security.capability": bytes.fromhex("0100000200200000000000000000000000000000")}
ACCESS = {b"SCHILY.xattr.system.posix_acl_access": ACL}


@pytest.mark.parametrize("mode", [0o2755, 0o700, 0o644])
def test_the_mode_of_a_folder_counts_in_the_acl_that_a_layer_below_gave_it(compare: Comparison, mode: int) -> None:
    below = [Spec(b"a", b"5", records=ACCESS)]
    assert compare.check([below, [Spec(b"a/c"), Spec(b"a", b"5", mode=mode)], [Spec(b"a/d")]]) == "equal"
    assert compare.check([below, [Spec(b"a/c"), Spec(b"a", b"5", mode=mode, records=ACCESS)]]) == "equal"


@pytest.mark.parametrize("kind", [b"0", b"2", b"3", b"6"])
def test_a_hard_link_takes_a_capability_away_as_in_containerd(compare: Comparison, kind: bytes) -> None:
    first = Spec(b"a", kind, link=b"x" if kind == b"2" else b"", device=(1, 3), records=CAPABILITY)
    assert compare.check([[first, Spec(b"b", b"1", link=b"a")]]) == "equal"
    assert compare.check([[first, Spec(b"b", b"1", link=b"a", records=CAPABILITY)]]) == "equal"


# Attacks that containerd takes, and the words with which parbake refuses them (docs/explanation/engine.md, "Where it is
# stricter").
ALONE = {
    "name that climbs": "leads outside its root",
    "name that climbs after going down": "leads outside its root",
    "absolute name that climbs": "leads outside its root",
    "GNU long name that climbs": "leads outside its root",
    "PAX path that climbs": "leads outside its root",
    "global PAX path that climbs": "leads outside its root",
    "folders 300 deep": "nests folders more than 256 deep",
    "device number that does not exist": "the device number 1099511627776:1 does not exist",
}


@pytest.mark.parametrize("what", [*corpus()])
@pytest.mark.parametrize("place", ["alone", "above another"])
def test_known_attacks_end_as_in_containerd(compare: Comparison, what: str, place: str) -> None:
    raw, fate = attacks()[what]
    layer = [Spec(b"attack", raw=raw)]
    layers = [layer] if place == "alone" else [LOWER, layer]
    if what in ALONE:
        with pytest.raises(Difference, match=f"parbake alone refuses it: .*{ALONE[what]}"):
            compare.check(layers)
    else:
        assert compare.check(layers) == ("refused" if fate == "refused" else "equal")


def test_a_difference_is_made_smaller(compare: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(STRICTER, "a name that climbs above the root")
    made = [LOWER, [Spec(b"p", data=b"1" * 5000), Spec(b"../q", data=b"2", mode=0o600), Spec(b"r")], [Spec(b"t")]]

    def fails(smaller: Stack) -> bool:
        try:
            compare.check(smaller)
        except Difference:
            return True
        return False

    assert fails(made)
    assert shrunk(made, fails) == [[Spec(b"../q")]]


class Pair:
    """Two stores: one that containerd fills by itself (``ctr images import``), one that parbake fills."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.numbers = itertools.count()
        self.theirs = stack.enter_context(FollowingDaemon(folder / "theirs", folder / "run-theirs"))
        self.their_client: Client = stack.enter_context(self.theirs.client())
        self.ours = stack.enter_context(Daemon(folder / "ours", folder / "run-ours"))
        self.our_client: Client = stack.enter_context(self.ours.client())

    def compare(self, layers: list[bytes], *, unique: bool = True) -> str:
        """Return "refused" or "equal"; fail when only one refuses or the trees differ."""
        number = next(self.numbers)
        # A layer of its own at the bottom keeps examples from finding each other's snapshots.
        mark = archive(entry(b"unique", data=b"%d" % number))
        bottom = layers[0][: -len(tars.END)] + mark if unique else layers[0]
        blobs = [bottom, *layers[1:]]
        built = image(*blobs, compression="none")
        name = f"localhost/example:{number}"
        work = self.folder / f"work{number}"
        work.mkdir()
        said = pull_by_ctr(self.theirs, built, work, name, check=False)
        their_error = said.stderr if said.code else ""  # it warns that it sees no process of the daemon
        (work / "staged").mkdir()
        ours = image_of(built, name)
        try:
            plan = plan_of(ours)
            with held(self.our_client, plan.key) as store:
                destination = MountedStore(store, work / "staged")
                fill(plan, store, lambda _: Memory(built), events=Events(), destination=destination)
        except LayerError as error:
            if not their_error:
                raise AssertionError("we refuse what containerd takes") from error
            with pytest.raises(LayerError):
                volume_trees(ours.layers, blobs, work)
            return "refused"
        assert not their_error, "we take what containerd refuses"
        written = volume_trees(ours.layers, blobs, work)
        chains = tuple(layer.chain_id for layer in ours.layers)
        trees = [scan(folder) for folder in snapshot_folders(self.our_client, chains)]
        for position, (mine, other) in enumerate(zip(trees, written, strict=True)):
            found = differences(mine, other)
            assert not found, f"layer {position} in a volume:\n" + "\n".join(found)
        for position, folder in enumerate(snapshot_folders(self.their_client, chains)):
            theirs, mine = scan(folder), trees[position]
            # What containerd dates by the moment of the unpack: see the docstring of settle.
            undated = frozenset(path for path, node in theirs.items() if node.modified > 1_750_000_000_000_000_000)
            found = differences(theirs, mine, ignore_times_of=undated)
            assert not found, f"layer {position}:\n" + "\n".join(found)
        return "equal"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(tmp_path_factory.mktemp("pair"), stack)


def test_whole_fills_of_random_stacks_come_out_as_imports(pair: Pair) -> None:
    """The random comparison above asks containerd's services; this one its client, and a whole fill."""
    seen = Counter(pair.compare([build(layer) for layer in made]) for made in _without_rules(range(30)))
    assert seen["equal"] > 5
    assert seen["refused"] > 5


def _without_rules(seeds: range) -> Iterator[Stack]:
    for seed in seeds:
        made = stack(seed, outside=b"/nowhere/outside")
        if not any(rule.applies(spec) for rule in STRICTER.values() for layer in made for spec in layer):
            yield made


WHOLE = [
    Spec(b"d/", b"5", mode=0o2755, uid=5, gid=6),
    Spec(b"d/f", data=b"x" * 700, mode=0o4755),
    Spec(b"d/h", b"1", link=b"d/f", mode=0o600, mtime=77),
    Spec(b"d/s", b"2", link=b"f"),
]


def test_cut_off_at_every_block(pair: Pair) -> None:
    """Where containerd takes a truncated archive, so do we, with the same tree; where it refuses, so do we."""
    data = build(WHOLE)
    seen = {size: pair.compare([data[:size]], unique=False) for size in range(0, len(data) + 1, 256)}
    assert set(seen.values()) == {"equal", "refused"}
    assert seen[len(data)] == "equal"


def test_lower_layers_shape_what_a_layer_implies(compare: Comparison) -> None:
    lower = [
        Spec(b"opt/", b"5", mode=0o1770, uid=3, gid=4, mtime=1000, records={b"SCHILY.xattr.user.a": b"b"}),
        Spec(b"opt/deep/", b"5", mode=0o700, uid=9, mtime=2000),
        Spec(b"lib", b"2", link=b"opt/deep"),
        Spec(b"file"),
    ]
    middle = [Spec(b"opt/", b"5", mode=0o711), Spec(b"opt/.wh.deep")]
    upper = [Spec(name, data=b"x") for name in (b"opt/deep/x", b"lib/y", b"new/z", b"file/w")]
    later = [Spec(b"opt/deep/v", data=b"x"), Spec(b"opt/", b"5", mode=0o750)]
    assert compare.check([lower, upper, later]) == "equal"
    assert compare.check([lower, middle, upper]) == "equal"


def test_whiteouts_in_the_bottom_layer_remove_what_it_holds(compare: Comparison) -> None:
    bottom = [
        Spec(b"a/", b"5"),
        Spec(b"a/old", data=b"1"),
        Spec(b"b/implied/x", data=b"1"),
        Spec(b"a/.wh.old"),
        Spec(b"b/.wh..wh..opq"),
        Spec(b"b/kept", data=b"1"),
        Spec(b".wh.nothing"),
    ]
    assert compare.check([bottom]) == "equal"
