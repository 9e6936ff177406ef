"""A record as an in-toto Statement (v1) with an SLSA Provenance (v1) predicate, which any attestation tool can read.

What is ours lies under ``parbake``. Sources: in-toto/attestation spec/v1/statement.md, slsa.dev provenance v1.
"""

from __future__ import annotations

from parbake.records.record import Record

STATEMENT = "https://in-toto.io/Statement/v1"
PROVENANCE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:parbake:bake:v1"


def to_statement(record: Record) -> dict[str, object]:
    """Return the record as an in-toto Statement."""
    images = record.plan.all_images
    materials: list[dict[str, object]] = [
        {"uri": f"oci://{image.reference}", "digest": _digest_set(image.manifest.digest)} for image in images
    ]
    for reference, found in record.attached.items():
        materials += [
            {
                "uri": f"oci://{reference.with_digest(each.digest)}",
                "digest": _digest_set(each.digest),
                "mediaType": each.media_type,
                "annotations": {"kind": each.kind, "of": str(reference)},
            }
            for each in found
        ]
    if record.base_digest:
        base = record.plan.base
        materials.append(
            {"uri": f"parbake-base:{base.kind}:{base.identity}", "digest": _digest_set(record.base_digest)}
        )
    return {
        "_type": STATEMENT,
        "subject": subjects(record),
        "predicateType": PROVENANCE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": record.plan.to_json(),
                "resolvedDependencies": materials,
            },
            "runDetails": {
                "builder": {"id": f"urn:parbake:builder:{record.builder}", "version": {"parbake": record.parbake}},
                "metadata": {
                    "invocationId": record.key,
                    "startedOn": record.started_at,
                    "finishedOn": record.finished_at,
                },
            },
        },
        "parbake": record.model_dump(mode="json"),
    }


def subjects(record: Record) -> list[dict[str, object]]:
    """Return what the statement is about: the file by its digest, or what lies in a cloud by ids that never change."""
    subjects: list[dict[str, object]] = []
    if record.digests:
        subjects.append({"name": record.artefact, "digest": record.digests})
    for region, there in record.published.items():
        ids = {"awsImageId": there.image} if there.image else {"awsSnapshotId": there.snapshots[0].id}
        uri = f"aws://{region}/{there.image or there.snapshots[0].id}"
        subjects.append({"name": f"{record.artefact}@{region}", "uri": uri, "digest": ids})
    return subjects


def _digest_set(digest: str) -> dict[str, str]:
    algorithm, _, value = digest.partition(":")
    return {algorithm: value}
