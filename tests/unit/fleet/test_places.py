"""Where artefacts are to be: what the fleet says and what a Bakefile says, put together; what is still lacking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parbake import cli
from parbake.bakefile import Bakefile
from parbake.bakefile import load as load_bakefile
from parbake.core.errors import InputError
from parbake.core.events import Events
from parbake.core.model import Published, Snapshot
from parbake.fleet import places, preview
from parbake.fleet.cells import cells, run_request
from parbake.fleet.engine.tasks import Destination, Root
from parbake.fleet.file import load
from parbake.fleet.places import Place
from standins.plans import record

HOME, OTHER = "eu-west-1", "us-east-1"
ROLE, ANOTHER = "arn:aws:iam::222222222222:role/publish", "arn:aws:iam::333333333333:role/publish"


def bakefile(folder: Path, **more: Any) -> Bakefile:
    said = {"version": 1, "images": ["r.example/app:1"], "base": "none", "builder": "ebs", **more}
    (folder / "parbake.yaml").write_text(json.dumps(said))
    return load_bakefile(folder / "parbake.yaml")


def place(region: str = OTHER, **more: Any) -> Place:
    return Place.model_validate({"region": region, **more}, strict=True)


@pytest.mark.parametrize(
    ("aws", "where", "problem"),
    [
        ({"region": HOME}, place(HOME, role=ROLE), "it is baked in eu-west-1, where nothing is copied"),
        (
            {"region": HOME, "copy_to": [OTHER], "copy_roles": {OTHER: ANOTHER}},
            place(role=ROLE),
            f"the copy in us-east-1 belongs to {ANOTHER} by the Bakefile, and to {ROLE} by the fleet's `places`",
        ),
        ({"region": HOME, "copy_to": [OTHER]}, place(role=ROLE), "belongs to no role by the Bakefile"),
        (
            {"region": HOME},
            place(share_with=("arn:aws:organizations::111111111111:organization/o-1",)),
            "AWS shares snapshots with accounts only",
        ),
        (
            {"region": HOME, "encrypted": True, "kms_key": {HOME: "alias/nodes"}},
            place(),
            "conflict with the Bakefile's `aws`: there is no key for us-east-1",
        ),
        (
            {"region": HOME, "encrypted": True},
            place(share_with=("222222222222",)),
            "with the account's own EBS key cannot be shared",
        ),
    ],
)
def test_where_both_say_different_things_it_is_told(
    tmp_path: Path, aws: dict[str, Any], where: Place, problem: str
) -> None:
    with pytest.raises(InputError, match=problem.replace("(", r"\(")) as caught:
        places.need_agreement([where], bakefile(tmp_path, aws=aws))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("aws", "where"),
    [
        ({"region": HOME}, place(HOME, share_with=("222222222222",))),
        ({"region": HOME, "role": ROLE}, place(HOME, role=ROLE)),
        ({"region": HOME, "copy_to": [OTHER], "copy_roles": {OTHER: ROLE}}, place(role=ROLE)),
        ({"region": HOME, "copy_to": [OTHER]}, place()),
        ({}, place(role=ROLE)),
        ({"region": HOME, "encrypted": True, "kms_key": "alias/nodes"}, place(share_with=("222222222222",))),
    ],
)
def test_what_goes_together_holds_together(tmp_path: Path, aws: dict[str, Any], where: Place) -> None:
    places.need_agreement([where], bakefile(tmp_path, aws=aws))


def test_what_is_lacking_is_what_the_record_does_not_say(tmp_path: Path) -> None:
    file = bakefile(tmp_path, aws={"region": HOME})
    wanted = [place(HOME, share_with=("222222222222",)), place(role=ROLE), place("eu-central-1")]
    assert places.lacking(wanted, file, None) == (HOME, OTHER, "eu-central-1")
    there = Published(snapshots=(Snapshot(id="snap-1"),))
    made = record("app").model_copy(update={"published": {HOME: there, OTHER: there}})
    assert places.lacking(wanted, file, made) == (HOME, "eu-central-1")
    held = {HOME: there.model_copy(update={"shared_with": ("222222222222", "444444444444")})}
    held[OTHER] = there.model_copy(update={"account": "333333333333"})
    made = made.model_copy(update={"published": {**held, "eu-central-1": there}})
    assert places.lacking(wanted, file, made) == (OTHER,), "it is another account's"
    local = bakefile(tmp_path, builder="local")
    assert places.lacking(wanted, local, made) == ()


def test_a_run_asks_for_the_places_and_what_is_wrong_is_a_cell_that_is(tmp_path: Path) -> None:
    bakefile(tmp_path, aws={"region": HOME, "copy_to": [OTHER]})
    quotas = {"copies": 3, "bakes": {"ebs": 2}}
    said = {"version": 1, "store": "store", "bakefiles": ["parbake.yaml"], "quotas": quotas}
    said["places"] = ["eu-central-1", {"region": OTHER, "role": ROLE}]
    (tmp_path / "fleet.yaml").write_text(json.dumps(said))
    fleet = load(tmp_path / "fleet.yaml")
    request = run_request(fleet, "fleet.yaml", Root(str(tmp_path)), tmp_path)
    assert request.places == [Destination("eu-central-1"), Destination(OTHER, ROLE)]
    assert (request.copies, request.bakes, request.supersede) == (3, {"ebs": 2}, False)
    (found,) = preview.look(fleet, tmp_path, cells(fleet, tmp_path), Events())
    assert found.state == "wrong"
    assert "the copy in us-east-1 belongs to no role by the Bakefile" in found.problem
    bakefile(tmp_path, builder="local")
    with pytest.raises(InputError, match="none of its Bakefiles is baked into EC2") as caught:
        run_request(fleet, "fleet.yaml", Root(str(tmp_path)), tmp_path)
    assert "builder: ebs" in caught.value.hint
    (tmp_path / "parbake.yaml").write_text("version: 2\n")
    run_request(fleet, "fleet.yaml", Root(str(tmp_path)), tmp_path)


def test_policies_allow_what_a_bakefile_with_the_same_places_would_need(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def allowed(*more: str, **aws: Any) -> Any:
        bakefile(tmp_path, aws={"region": HOME, **aws})
        assert cli.run(["iam", "-f", str(tmp_path / "parbake.yaml"), "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)

    where = [OTHER, {"region": "ap-south-1", "role": ROLE}, {"region": HOME, "share_with": ["444444444444"]}]
    file = tmp_path / "fleet.yaml"
    file.write_text(
        json.dumps({"version": 1, "store": "s3://bucket/fleet", "bakefiles": ["parbake.yaml"], "places": where})
    )
    same = {"copy_to": [OTHER, "ap-south-1"], "copy_roles": {"ap-south-1": ROLE}, "share_with": ["444444444444"]}
    assert allowed("--fleet", str(file)) == allowed(**same)
    assert allowed("--fleet", str(file)) != allowed()
    file.write_text(
        json.dumps({"version": 1, "store": "s3://bucket/fleet", "bakefiles": ["parbake.yaml"], "places": [OTHER]})
    )
    bakefile(tmp_path, aws={"region": HOME, "copy_to": [OTHER], "copy_roles": {OTHER: ROLE}})
    assert cli.run(["iam", "-f", str(tmp_path / "parbake.yaml"), "--fleet", str(file)]) == 2
    assert "the copy in us-east-1 belongs to" in capsys.readouterr().err


def test_what_lies_in_no_cloud_has_no_places(tmp_path: Path) -> None:
    local = bakefile(tmp_path, builder="local")
    assert places.with_places(local, [place()]) is local
