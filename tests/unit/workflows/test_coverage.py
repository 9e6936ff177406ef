"""What nodes with a bake still fetch: the rule by properties, and what the commands say of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake import records
from parbake.core.coverage import Held, cover
from parbake.core.errors import NoSuchImage, Unreachable
from parbake.core.model import Image, Layer, Platform
from parbake.core.reference import Reference
from parbake.images.registry import Registry
from parbake.records import Record
from standins.plans import digest, image, plan, record
from standins.runs import parbake

STACKS = st.lists(st.integers(0, 4), max_size=5)
APP = "registry.example/app"


def stack(words: list[int], *, packed: str = "gzip") -> tuple[Layer, ...]:
    """Return layers by their contents, bottom first; ``packed`` is another digest of the same contents."""
    found, below = [], ""
    for word in words:
        below = digest(f"{below}/{word}")
        found.append(
            Layer(
                media_type="application/vnd.oci.image.layer.v1.tar+gzip",
                digest=digest(f"{packed} {word}"),
                size=100 + word,
                diff_id=digest(f"tar {word}"),
                chain_id=below,
            )
        )
    return tuple(found)


def made(words: list[int], name: str = f"{APP}:1", **more: str) -> Image:
    return image(name, layers=stack(words, **more))


@given(st.lists(STACKS, max_size=3), STACKS, st.booleans())
def test_what_lies_unpacked_from_the_bottom_up_is_never_fetched_and_the_rest_is(
    baked: list[list[int]], words: list[int], keep: bool
) -> None:
    images = tuple(made(each, f"registry.example/baked{number}:1") for number, each in enumerate(baked))
    held = Held.by(plan(images=images, keep_layers=keep))
    wanted = made(words, packed="gzip" if keep else "zstd")
    found = cover(held, wanted)
    deepest = max((sum(1 for _ in same(words, each)) for each in baked), default=0)
    assert len(found.held) == deepest, "compression is not compared, the place in the stack is"
    kept = {each.digest for one in images for each in one.layers} if keep else set()
    assert {each.digest for each in found.layers} == {each.digest for each in wanted.layers[deepest:]} - kept
    assert found.missing == sum(found.fetched.values()) <= found.size


def same(words: list[int], others: list[int]) -> list[int]:
    """Return the beginning that two stacks share."""
    found = []
    for one, other in zip(words, others, strict=False):
        if one != other:
            break
        found.append(one)
    return found


def test_an_image_of_the_bake_itself_is_fetched_by_nobody() -> None:
    baked = made([1, 2])
    found = cover(Held.by(plan(images=(baked,))), baked)
    assert (found.missing, found.layers, found.documents) == (0, (), ())


def baked(*images: Image) -> Record:
    found = record(passed=True)
    holds = plan(images=images)
    return found.model_copy(update={"plan": holds, "key": holds.key, "artefact": holds.artefact_name})


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Write records of two bakes of an application that has got a new top; work in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    bakes = [baked(made([0, 1], f"{APP}:1")), baked(made([0, 2], f"{APP}:2"))]
    for each in bakes:
        records.write(tmp_path, each)
    return str(tmp_path / bakes[0].file_name), str(tmp_path / bakes[1].file_name)


def served(monkeypatch: pytest.MonkeyPatch, **images: Image | Exception) -> list[str]:
    """Let registries serve images by tag; return what they are asked for."""
    asked = []

    def resolve(_: Registry, reference: Reference, platform: Platform) -> Image:
        del platform
        asked.append(str(reference))
        found = images.get(f"v{reference.tag}", NoSuchImage(f"{reference}: there is no such tag"))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(Registry, "resolve", resolve)
    return asked


def test_a_deployment_between_two_bakes_fetches_what_is_new(files: tuple[str, str]) -> None:
    said = parbake("coverage", files[0], "--against", files[1], "--json", "--pull-rate", "1").good()
    [row] = said["images"]
    fetched = 102 + sum(each.size for each in (made([2]).target, made([2]).config))
    assert (row["found"], row["fetched"], row["layers"]) == ("other-name", fetched, {"all": 2, "held": 1})
    assert digest("gzip 2") in row["blobs"]
    assert (said["fetched"], said["seconds"]) == (fetched, {"pull": fetched / 1_000_000})
    shown = parbake("coverage", files[0], "--against", files[1]).out
    assert f"{fetched / 1024:.2f} KiB of" in shown
    assert "1 of 2" in shown
    assert "not under this name" in shown


def test_a_tag_that_has_moved_is_told_from_one_that_has_not(
    files: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = served(monkeypatch, v1=made([0, 3], f"{APP}:1").model_copy(update={"target": made([4], "x/y:9").target}))
    [row] = parbake("coverage", files[0], "--json").good()["images"]
    assert (asked, row["found"], row["layers"]["held"]) == ([f"{APP}:1"], "other-digest", 1)
    served(monkeypatch, v1=made([0, 1], f"{APP}:1"))
    [row] = parbake("coverage", files[0], f"{APP}:1", "--json").good()["images"]
    assert (row["found"], row["fetched"], row["blobs"]) == ("baked", 0, [])
    assert "nothing" in parbake("coverage", files[0], f"{APP}:1").out


def test_what_no_registry_tells_is_unknown_beside_what_one_does(
    files: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Unreachable("registry.example: nobody answers")
    served(monkeypatch, v1=made([0, 1], f"{APP}:1"), v8=gone)
    done = parbake("coverage", files[0], f"{APP}:1", f"{APP}:7", "--json")
    known, unknown = done.document["images"]
    assert (done.code, known["fetched"], unknown["problem"]) == (1, 0, f"{APP}:7: there is no such tag")
    assert "1 of 2 images could not be looked up" in done.err
    asked = served(monkeypatch, v1=gone, v8=gone)
    done = parbake("coverage", files[0], f"{APP}:8", f"{APP}:1")
    assert done.code == 1
    assert len(asked) <= 2
    assert done.out.count("nobody answers") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a:1", "--against", "OTHER"), "--against takes the images of records"),
        (("a:b:c",), "a:b:c"),
        (("--manifests", "nowhere"), "there is no folder or file nowhere"),
        (("--pull-rate", "0"), "0"),
    ],
)
def test_what_cannot_be_meant_is_refused(files: tuple[str, str], arguments: tuple[str, ...], said: str) -> None:
    done = parbake("coverage", files[0], *(files[1] if each == "OTHER" else each for each in arguments))
    assert done.code == 2
    assert said in done.err


def test_images_that_were_built_here_have_no_name_that_can_move(tmp_path: Path) -> None:
    local = baked(made([0], "localhost/app:1"))
    records.write(tmp_path, local)
    done = parbake("coverage", tmp_path / local.file_name)
    assert done.code == 2
    assert "are in no registry" in done.err


def pod(reference: str) -> str:
    return (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n"
        f"    - {{name: web, image: '{reference}', imagePullPolicy: IfNotPresent}}\n"
    )


def test_lint_warns_of_another_tag_of_which_layers_are_baked(
    files: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served(monkeypatch, v2=made([0, 2], f"{APP}:2"), v3=made([3], f"{APP}:3"))
    levels = {}
    for tag in ("2", "3", "4"):
        Path("pod.yaml").write_text(pod(f"{APP}:{tag}"))
        done = parbake("lint", "pod.yaml", "--bake", files[0], "--format", "json")
        [found] = done.document["findings"]
        levels[tag] = (done.code, found["rule"], found["level"], "remain to be fetched" in found["message"])
    assert levels == {
        "2": (0, "reference-differs", "warning", True),
        "3": (3, "reference-differs", "error", True),
        "4": (3, "reference-differs", "error", False),
    }
    Path("pod.yaml").write_text(pod(f"{APP}:2"))
    asked = served(monkeypatch)
    assert parbake("lint", "pod.yaml", "--bake", files[0], "--offline").code == 3
    assert asked == []
