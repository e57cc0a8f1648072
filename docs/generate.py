"""Generate the reference pages docs/{config,cli,api,schema}.md from the code itself.

The idea: what the program declares (settings, commands, routes, tables) is written down once, there; these pages
are derived, and `--check` (part of `make check`) fails when a page is not what would be generated now.
What this does not do: write the explaining pages, or change anything but these four files.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from edgepd import errors
from edgepd.cli import main as command_line
from edgepd.config import Declaration, declarations
from edgepd.settings import Settings
from edgepd_daemon.api.app import openapi_document
from edgepd_profiles.store import Store

DOCS = Path(__file__).parent
HELP_WIDTH = 100
LIMITS = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="))
LARGE = 2**53  # larger limits are those of 64-bit numbers, which tell nobody anything


def config_page() -> str:
    """Describe every setting, in sections as in config.toml."""
    lines = [
        "# Settings",
        "",
        "A setting comes from, in order of precedence: `--set key=value` on the command line, its environment",
        "variable, `config.toml`, its default. An unknown or impossible one is an error that names its origin.",
        "",
        "Directories follow the XDG base directory specification. `EDGEPD_HOME` moves everything below one",
        "directory; `EDGEPD_MODELS_DIR` moves the models alone.",
    ]
    known = declarations()
    for section in dataclasses.fields(Settings):
        keys = [key for key in known if key.split(".")[0] == section.name]
        if not keys:
            continue
        lines += ["", f"## [{section.name}]", "", str(inspect.getdoc(type(section.default))), ""]
        lines += _table("setting", "type", "default", "range or choice", "environment variable", "meaning")
        for key in keys:
            d = known[key]
            lines.append(_row(f"`{key}`", d.type.__name__, f"`{_literal(d.default)}`", _range(d), f"`{d.env}`", d.doc))
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    """Write a default as TOML does."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _range(declared: Declaration) -> str:
    if declared.choices:
        return " or ".join(f"`{_literal(choice)}`" for choice in declared.choices)
    low, high = declared.minimum, declared.maximum
    if low is not None and high is not None:
        return f"{low} to {high}"
    return f"at least {low}" if low is not None else (f"at most {high}" if high is not None else "")


def cli_page() -> str:
    """Show the help of every command, and the exit codes."""
    lines = ["# Command line"]
    for path, text in _helps(command_line, "edgepd", None):
        lines += ["", f"## {path}", "", "```text", text, "```"]
    lines += ["", "## Exit codes", "", "0 means success. Errors, with the HTTP status that the daemon gives:", ""]
    lines += _table("exit code", "error", "HTTP status", "code in the answer", "meaning")
    found = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.EdgepdError)]
    for kind in sorted(found, key=lambda kind: (kind.exit_code, kind.__name__)):
        meaning = " ".join(str(inspect.getdoc(kind)).split())
        lines.append(_row(str(kind.exit_code), kind.__name__, str(kind.http_status), f"`{kind.code}`", meaning))
    return "\n".join(lines) + "\n"


def _helps(command: click.Command, path: str, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    """Yield (full name, help text) of a command and all below it."""
    name = path.rpartition(" ")[2]
    context = click.Context(
        command, info_name=name, parent=parent, terminal_width=HELP_WIDTH, max_content_width=HELP_WIDTH
    )
    yield path, "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                yield from _helps(found, f"{path} {child}", context)


def api_page() -> str:
    """Describe the routes of the daemon from its OpenAPI document, and the bodies that they use."""
    document = openapi_document()
    lines = [
        "# HTTP API",
        "",
        "Spoken over the Unix socket of the daemon and, if `serve.tcp_port` is set, a loopback port with a token.",
        "The same as an OpenAPI document is served at `/openapi.json`. [Programs](clients.md) that speak OpenAI's or",
        "Ollama's API need no change; [serving](serving.md) explains limits, errors and what happens behind them.",
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            lines += ["", f"## {method.upper()} {path}", ""]
            lines += [operation.get("description") or operation.get("summary") or ""]
            lines += _operation(operation)
    schemas = document.get("components", {}).get("schemas", {})
    lines += ["", "# Bodies"] if schemas else []
    for name, schema in schemas.items():
        lines += ["", f"## {_title(name)}", ""]
        lines += [schema["description"], ""] if "description" in schema else []
        lines += _table("field", "type", "required", "default", "meaning")
        for field, content in schema.get("properties", {}).items():
            required = "yes" if field in schema.get("required", []) else ""
            default = f"`{json.dumps(content['default'])}`" if "default" in content else ""
            lines.append(_row(f"`{field}`", _type(content), required, default, content.get("description", "")))
    return "\n".join(lines) + "\n"


def _operation(operation: dict[str, Any]) -> list[str]:
    """List parameters, request body and answers of one route."""
    lines = []
    for parameter in operation.get("parameters", []):
        meaning = parameter.get("description") or parameter["schema"].get("description", "")
        about = f"- {parameter['in']} `{parameter['name']}`: {_type(parameter['schema'])}"
        lines.append(about + (f"; {meaning}" if meaning else ""))
    for kind, body in operation.get("requestBody", {}).get("content", {}).items():
        lines.append(f"- body ({kind}): {_type(body.get('schema', {}))}")
    for status, answer in operation["responses"].items():
        kinds = [f"{kind}: {_type(body.get('schema', {}))}" for kind, body in answer.get("content", {}).items()]
        lines.append(f"- {status}: {answer['description']}" + (f" ({'; '.join(kinds)})" if kinds else ""))
    return ["", *lines]


def _type(schema: dict[str, Any]) -> str:
    """Write a JSON schema in a few words."""
    if "$ref" in schema:
        return _title(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(_type(choice) for choice in schema["anyOf"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " or ".join(json.dumps(choice) for choice in schema["enum"])
    if schema.get("type") == "array":
        return f"array of {_type(schema.get('items', {}))}"
    limits = [f"{sign} {schema[key]:.15g}" for key, sign in LIMITS if abs(schema.get(key, LARGE)) < LARGE]
    return " ".join([str(schema.get("type", "any")), *limits])


def _title(name: str) -> str:
    """Return the name of a body; of two equal ones the document names the module as well: `a__b__ollama__c__Name`."""
    *modules, own = name.split("__")
    return f"{own} ({modules[-2]})" if len(modules) > 1 else own


def schema_page() -> str:
    """Describe the tables of a fresh profile."""
    lines = ["# Profile database", "", "SQLite. Any tool can read it while the daemon runs; only the daemon writes."]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.db"
        Store.open(path).close()
        with closing(sqlite3.connect(path)) as connection:
            named = "SELECT name FROM sqlite_master WHERE type = ? AND name NOT LIKE 'sqlite_%' ORDER BY name"
            for (table,) in connection.execute(named, ("table",)).fetchall():
                lines += ["", f"## {table}", "", *_table("column", "type", "null", "default", "key", "refers to")]
                lines += _columns(connection, table)
                lines += _indexes(connection, table)
    return "\n".join(lines) + "\n"


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    keys = connection.execute('SELECT "from", "table", "to" FROM pragma_foreign_key_list(?)', (table,))
    refers = {column: f"`{other}.{target or 'rowid'}`" for column, other, target in keys}
    rows = connection.execute('SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_info(?)', (table,))
    return [
        _row(f"`{name}`", kind, "" if notnull else "yes", default or "", str(key or ""), refers.get(name, ""))
        for name, kind, notnull, default, key in rows
    ]


def _indexes(connection: sqlite3.Connection, table: str) -> list[str]:
    """List the indexes that a migration created (origin 'c'), not those behind UNIQUE and PRIMARY KEY."""
    listed = "SELECT name, \"unique\", partial FROM pragma_index_list(?) WHERE origin = 'c' ORDER BY name"
    lines = []
    for name, unique, partial in connection.execute(listed, (table,)).fetchall():
        columns = connection.execute("SELECT name FROM pragma_index_info(?) ORDER BY seqno", (name,))
        kind = ("unique " if unique else "") + ("partial " if partial else "")
        lines.append(f"- {kind}index `{name}` on " + ", ".join(f"`{column}`" for (column,) in columns))
    return ["", *lines] if lines else []


def _table(*titles: str) -> list[str]:
    return [_row(*titles), "|" + "---|" * len(titles)]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def pages() -> dict[str, Callable[[], str]]:
    """Return the generated pages: file name in docs/ and what makes its text."""
    return {"config.md": config_page, "cli.md": cli_page, "api.md": api_page, "schema.md": schema_page}


def main(arguments: list[str] | None = None) -> int:
    """Write the pages, or with --check compare them. Return the exit code."""
    parser = argparse.ArgumentParser(description="Generate the reference pages in docs/ from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    options = parser.parse_args(arguments)
    stale = []
    for name, make in pages().items():
        path = DOCS / name
        text = f"<!-- Generated by docs/generate.py (make docs). Do not edit. -->\n{make()}"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not options.check:
                path.write_text(text, encoding="utf-8")
    if not options.check:
        print("written: " + (", ".join(stale) or "nothing, all pages are up to date"))
        return 0
    for name in stale:
        print(f"docs/{name} is not what the code says; run: make docs", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
