"""Fails when an example in an OpenAPI document is not what its own schema says: `examples.py openapi.json`."""

import json
import sys

import jsonschema_rs


def media_types(node, path=""):
    """Every place that has both a schema and an example."""
    if isinstance(node, dict):
        if "schema" in node and "example" in node:
            yield path, node["schema"], node["example"]
        for name, child in node.items():
            if name != "example":
                yield from media_types(child, f"{path}/{name}")
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from media_types(child, f"{path}/{index}")


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        document = json.load(file)
    checked, wrong = 0, []
    for path, schema, example in media_types(document):
        # References in a schema are into the document, so the schema is looked at as a part of it.
        root = {"components": document["components"], "allOf": [schema]}
        validator = jsonschema_rs.Draft202012Validator(root)
        wrong += [f"{path}: {error.message}" for error in validator.iter_errors(example)]
        checked += 1
    if not checked or wrong:
        print(f"{checked} examples checked", *wrong, sep="\n", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
