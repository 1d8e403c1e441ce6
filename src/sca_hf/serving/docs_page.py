"""The page that describes the HTTP interface, made from its OpenAPI description; it needs nothing from elsewhere."""

import re
from collections.abc import Iterator
from dataclasses import fields
from html import escape
from string import Template
from typing import Any

from .examples import requests
from .limits import Limits


_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: 0.875em; }
pre { padding: 0.75rem; border: 1px solid #8886; border-radius: 6px; overflow-x: auto; }
details { border-top: 1px solid #8886; padding: 0.5rem 0; }
summary { cursor: pointer; padding: 0.25rem 0; }
table { border-collapse: collapse; width: 100%; margin: 0.5rem 0; }
td { padding: 0.25rem 0.75rem 0.25rem 0; vertical-align: top; border-top: 1px solid #8883; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>$title $version</h1>
$description
<p>Models here: $models. For programs: <a href="openapi.json">openapi.json</a>.</p>
<h2>In a shell</h2>
<pre>$examples</pre>
<p>If the server was started with a token, every request needs the header
<code>Authorization: Bearer TOKEN</code>: <code>curl -H "Authorization: Bearer $$SCA_TOKEN" ...</code></p>
<h2>Requests</h2>
$operations
<h2>Limits</h2>
<table>$limits</table>
</body>
</html>
""")


def docs_page(description: dict[str, Any], models: list[str], limits: Limits, address: str) -> str:
    """Returns the page as HTML.

    Args:
        description: of the interface, as OpenAPI.
        models: names of the models.
        limits: the most that a request may take.
        address: of the server, without a slash at the end.
    """
    info = description["info"]
    return _PAGE.substitute(
        title=escape(info["title"]),
        version=escape(info["version"]),
        description=re.sub("`(.*?)`", r"<code>\1</code>", f"<p>{escape(info['description'])}</p>"),
        models=", ".join(f"<code>{escape(name)}</code>" for name in models),
        examples=escape(requests(address)),
        operations="\n".join(_operations(description)),
        limits="".join(
            _row(each.name, f"{getattr(limits, each.name):,} {each.metadata['help']}") for each in fields(limits)
        ),
    )


def _operations(description: dict[str, Any]) -> Iterator[str]:
    # Those that do the work come first.
    for path, methods in sorted(description["paths"].items(), key=lambda entry: "post" not in entry[1]):
        for method, operation in methods.items():
            head = f"<code>{method.upper()} {escape(path)}</code> {escape(operation['summary'])}"
            body = operation.get("requestBody", {}).get("content", {})
            parts = [_fields(description, content["schema"], "takes") for content in body.values()]
            answers = [
                _fields(description, content["schema"], f"answers with {code}")
                for code, answer in operation["responses"].items()
                if code.startswith("2")
                for content in answer.get("content", {}).values()
            ]
            refusals = [code for code in operation["responses"] if not code.startswith("2")]
            refused = f"<p>errors {', '.join(refusals)}: <code>error</code>, a sentence</p>" if refusals else ""
            yield f"<details><summary>{head}</summary>{''.join(parts + answers)}{refused}</details>"


def _fields(description: dict[str, Any], schema: dict[str, Any], title: str) -> str:
    """A table of the fields of an object; of one that may have several forms, of each."""
    schemas = [_resolved(description, one) for one in schema.get("anyOf", [schema])]
    rows = [
        _row(name + "*" * (name in one.get("required", ())), f"{_kind(field)}. {field.get('description', '')}".strip())
        for one in schemas
        for name, field in one.get("properties", {}).items()
    ]
    if rows:
        return f"<p>{title} JSON (* is required):</p><table>{''.join(rows)}</table>"
    binary = schema.get("format") == "binary"
    return f"<p>{title} {'a file' if binary else _kind(schema) or 'JSON'}</p>"


def _resolved(description: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    return description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]


def _kind(schema: dict[str, Any]) -> str:
    """The type of a field, in words of JSON."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one) for one in schema["anyOf"] if one.get("type") != "null"))
    if schema.get("type") == "array" and schema.get("items"):
        return f"array of {_kind(schema['items'])}"
    return str(schema.get("type", ""))


def _row(name: str, text: str) -> str:
    return f"<tr><td><code>{escape(name)}</code></td><td>{escape(text)}</td></tr>"
