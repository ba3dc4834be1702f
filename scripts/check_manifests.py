"""Validates deploy/kserve against KServe's CRD schemas, as strictly as a cluster would.

Usage: check_manifests.py FOLDER [MANIFEST...]; FOLDER holds CustomResourceDefinition files. Prints a line per manifest and
the place and reason of each fault; exits 1 if there is any. A cluster drops fields that the schema does not name, which
turns a misspelt probe into no probe; here they are faults.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

Schema = dict[str, Any]
MANIFESTS = Path(__file__).resolve().parent.parent / "deploy" / "kserve"
INTEGER_RANGES = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
# CRDs leave `metadata` to the API server. This is the part of it that is written by hand.
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA: Schema = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "maxLength": 63, "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
        "namespace": {"type": "string"},
        "labels": TEXTS,
        "annotations": TEXTS,
    },
    "additionalProperties": False,
}


def json_schema(structural: Schema) -> Schema:
    """Translate a Kubernetes structural schema to JSON Schema; fields that it does not name become faults."""
    schema = dict(structural)
    if "properties" in schema:
        schema["properties"] = {name: json_schema(part) for name, part in schema["properties"].items()}
    if isinstance(schema.get("items"), dict):
        schema["items"] = json_schema(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        schema["additionalProperties"] = json_schema(schema["additionalProperties"])
    elif schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        schema["type"] = ["integer", "string"]
    if schema.get("format") in INTEGER_RANGES:
        lowest, highest = INTEGER_RANGES[schema["format"]]
        schema = {"minimum": lowest, "maximum": highest, **schema}
    return {"anyOf": [{"type": "null"}, schema]} if schema.get("nullable") else schema


def unique_keys(_: Any, names: list[str], items: object, schema: Schema) -> Iterator[ValidationError]:
    """Report items of a list of type `map` that share their keys, such as two containers of one name."""
    if not isinstance(items, list):
        return
    defaults = {name: part.get("default") for name, part in schema["items"].get("properties", {}).items()}
    seen = []
    for item in filter(lambda item: isinstance(item, dict), items):
        key = {name: item.get(name, defaults.get(name)) for name in names}
        if key in seen:
            yield ValidationError(f"two items have {key}")
        seen.append(key)


Validator = extend(Draft202012Validator, {"x-kubernetes-list-map-keys": unique_keys})


def documents(path: Path) -> list[Any]:
    """Return the YAML documents of a file, with libyaml's loader where there is one: a CRD has two megabytes."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [document for document in yaml.load_all(path.read_text(), loader) if document is not None]


def load_schemas(folder: Path) -> dict[tuple[str, str], Schema]:
    """Read every CustomResourceDefinition of the folder: (apiVersion, kind) to JSON Schema."""
    schemas = {}
    for path in sorted(folder.glob("*.y*ml")):
        for crd in documents(path):
            if not isinstance(crd, dict) or crd.get("kind") != "CustomResourceDefinition":
                continue
            spec = crd["spec"]
            for version in filter(lambda version: version.get("served", True), spec["versions"]):
                schema = json_schema(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = METADATA
                schemas[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return schemas


def faults(manifest: object, schemas: dict[tuple[str, str], Schema]) -> list[str]:
    """Return "where: what" for each fault of one manifest; an empty list if it is valid."""
    if not isinstance(manifest, dict):
        return [f"$: expected a mapping, got {type(manifest).__name__}"]
    key = (str(manifest.get("apiVersion")), str(manifest.get("kind")))
    if key not in schemas:
        return [f"$: no schema for apiVersion {key[0]} and kind {key[1]}; known: {sorted(schemas)}"]
    errors = sorted(Validator(schemas[key]).iter_errors(manifest), key=lambda error: error.json_path)
    return [f"{error.json_path}: {error.message}" for error in errors]


def main(arguments: list[str]) -> int:
    """Check the named manifests, or all of deploy/kserve; return the exit status."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    schemas = load_schemas(Path(arguments[0]))
    if not schemas:
        print(f"{arguments[0]}: no CustomResourceDefinition in this folder", file=sys.stderr)
        return 2
    invalid = False
    for path in [Path(name) for name in arguments[1:]] or sorted(MANIFESTS.rglob("*.yaml")):
        reasons = [reason for manifest in documents(path) for reason in faults(manifest, schemas)]
        invalid = invalid or bool(reasons)
        print(f"{path.name}: {'invalid' if reasons else 'valid'}", *reasons, sep="\n  ")
    return int(invalid)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
