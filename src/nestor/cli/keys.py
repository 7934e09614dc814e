"""``nestor key``: the admin key, and keys with less reach."""

from typing import Annotated
from urllib.parse import quote

import typer

from nestor.cli.client import Stack, admin_key, key_file, load_settings
from nestor.cli.inert import inert
from nestor.cli.render import Screen, print_json
from nestor.errors import Misconfigured

app = typer.Typer(
    name="key",
    invoke_without_command=True,
    epilog="""Examples:

  nestor key

  nestor key create --name ci --scope submit --scope read

  curl -H "Authorization: Bearer $(nestor key)" http://127.0.0.1:8090/status""",
)
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def key(context: typer.Context) -> None:
    """Print the admin key, or manage keys with less reach."""
    if context.invoked_subcommand is not None:
        return

    settings = load_settings()
    found = admin_key(settings)
    if found is None:
        raise Misconfigured(
            f"{key_file(settings)} does not exist: the key is made at first start"
            " — start the stack with: nestor up"
        )
    typer.echo(found)


@app.command(
    epilog="""Example:

  nestor key create --name dashboard --scope read --scope metrics"""
)
def create(
    name: Annotated[str, typer.Option(help="What the key is for.")],
    scope: Annotated[
        list[str],
        typer.Option(
            help="admin, submit, approve, model, read, metrics or service; repeatable."
        ),
    ],
    as_json: _JSON = False,
) -> None:
    """Make a key. It is shown once, and stored as a hash only."""
    body = {"name": name, "scopes": scope}
    made = Stack.find().call("coordinator", "POST", "/keys", body=body)
    if as_json:
        print_json(made)
        return
    typer.echo(inert(made.get("secret") or made.get("key")))
    typer.echo("shown once: keep it now", err=True)


@app.command("list", epilog="Example:\n\n  nestor key list --json")
def list_keys(
    every: Annotated[
        bool,
        typer.Option("--all", help="Also revoked keys of a task's iterations."),
    ] = False,
    as_json: _JSON = False,
) -> None:
    """List keys, without their secrets."""
    query = {"all": "true"} if every else {}
    found = Stack.find().call("coordinator", "GET", "/keys", query=query)
    if as_json:
        print_json(found)
        return
    rows = found.get("keys", []) if isinstance(found, dict) else found
    Screen().table(
        ("id", "name", "scopes", "created", "revoked"),
        [
            (
                row.get("id"),
                row.get("name"),
                ",".join(row.get("scopes", [])),
                row.get("created_at"),
                row.get("revoked_at"),
            )
            for row in rows
        ],
        empty="no keys beside the admin key",
    )


@app.command(epilog="Example:\n\n  nestor key revoke KEY_ID")
def revoke(
    key_id: Annotated[str, typer.Argument(help="From: nestor key list")],
) -> None:
    """Refuse a key from now on."""
    Stack.find().call("coordinator", "DELETE", f"/keys/{quote(key_id, safe='')}")
    typer.echo("revoked")
