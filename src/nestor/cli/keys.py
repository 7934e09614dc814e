"""``nestor key``: the admin key, and keys with less reach."""

from decimal import Decimal
from typing import Annotated, Any
from urllib.parse import quote

import typer

from nestor.cli.client import Stack, admin_key, key_file, load_settings
from nestor.cli.inert import inert
from nestor.cli.render import UNKNOWN, Screen, print_json
from nestor.errors import InvalidInput, Misconfigured, NotFound

app = typer.Typer(
    name="key",
    invoke_without_command=True,
    epilog="""Examples:

  nestor key

  nestor key create --name ci --scope submit --scope read

  curl -H "Authorization: Bearer $(nestor key)" http://127.0.0.1:8090/status""",
)
_ID_CHARS = 36
_LEAST_CHARS = 8
"""Of the beginning of an id that may stand for it."""
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
    # It may be the stack's own, which was started with it; or an old or mistyped one.
    if settings.api_key is not None and (path := key_file(settings)).exists():
        said = f"this is NESTOR_API_KEY; the key in {path} is printed by:"
        typer.echo(inert(f"{said} env -u NESTOR_API_KEY nestor key"), err=True)


@app.command(
    epilog="""Example:

  nestor key create --name dashboard --scope read --scope metrics

  nestor key create --name ci --scope model --usd 5 --tokens 1000000 --rpm 60 --tpm 100000"""
)
def create(
    name: Annotated[str, typer.Option(help="What the key is for.")],
    scope: Annotated[
        list[str],
        typer.Option(
            help="admin, submit, approve, model, read, metrics, service or task:ID;"
            " repeatable."
        ),
    ],
    usd: Annotated[
        str | None, typer.Option(help="What it may spend on models in all, in USD.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens it may use in all.")
    ] = None,
    rpm: Annotated[
        int | None, typer.Option(min=1, help="Requests in any minute.")
    ] = None,
    tpm: Annotated[
        int | None, typer.Option(min=1, help="Tokens in any minute.")
    ] = None,
    as_json: _JSON = False,
) -> None:
    """Make a key. It is shown once, and stored as a hash only."""
    body: dict[str, Any] = {"name": name, "scopes": scope}
    given = {"usd": _amount(usd), "tokens": tokens, "rpm": rpm, "tpm": tpm}
    if limits := {what: limit for what, limit in given.items() if limit is not None}:
        body["limits"] = limits
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
        ("id", "name", "scopes", "created", "last used", "spent", "a minute", "state"),
        [
            (
                row.get("id"),
                row.get("name"),
                ",".join(row.get("scopes", [])),
                row.get("created_at"),
                row.get("last_used_at") or "never",
                _spent(row),
                _a_minute(row),
                f"revoked {row['revoked_at']}" if row.get("revoked_at") else "good",
            )
            for row in rows
        ],
        empty="no keys beside the admin key",
    )


def _amount(text: str | None) -> str | None:
    """Return an amount as it is sent: what the service would refuse is said here at once."""
    if text is None:
        return None
    try:
        value = Decimal(text)
    except ArithmeticError:
        raise InvalidInput.at("--usd", f"{text!r} is not an amount") from None
    if not value.is_finite() or value <= 0:
        raise InvalidInput.at("--usd", "must be above 0")
    return str(value)


def _spent(row: dict[str, Any]) -> str | None:
    """Tell how much of how much a key has spent; None where it has no limit in all."""
    limits, spent = row.get("limits") or {}, row.get("spent") or {}
    parts = [
        f"{spent.get(side, UNKNOWN)} of {limits[side]} {unit}"
        for side, unit in (("usd", "USD"), ("tokens", "tokens"))
        if limits.get(side) is not None
    ]
    return ", ".join(parts) or None


def _a_minute(row: dict[str, Any]) -> str | None:
    limits = row.get("limits") or {}
    parts = [
        f"{limits[side]} {unit}"
        for side, unit in (("rpm", "requests"), ("tpm", "tokens"))
        if limits.get(side) is not None
    ]
    return ", ".join(parts) or None


@app.command(epilog="Example:\n\n  nestor key revoke KEY_ID")
def revoke(
    key_id: Annotated[
        str,
        typer.Argument(
            help="From: nestor key list; its beginning will do, 8 characters or more."
        ),
    ],
) -> None:
    """Refuse a key from now on."""
    if not key_id.strip("."):
        raise InvalidInput.at("KEY_ID", f"{key_id!r} is not an id")
    stack = Stack.find()
    if _LEAST_CHARS <= len(key_id) < _ID_CHARS:
        key_id = _only_one(stack, key_id)
    stack.call("coordinator", "DELETE", f"/keys/{quote(key_id, safe='')}")
    typer.echo(f"revoked {inert(key_id)}")


def _only_one(stack: Stack, beginning: str) -> str:
    """Return the id of the one key that begins so; nobody guesses between several."""
    listed: Any = stack.call("coordinator", "GET", "/keys", query={"all": "true"})
    ids = [str(row["id"]) for row in listed["keys"]]
    found = [one for one in ids if one.startswith(beginning)]
    if not found:
        raise NotFound.at("KEY_ID", f"there is no key {beginning}")
    if len(found) > 1:
        raise InvalidInput.at(
            "KEY_ID", f"{len(found)} keys begin with {beginning}; give more of it"
        )
    return found[0]
