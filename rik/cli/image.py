"""`rik image list|pull|prune`: the images that nodes have."""

from __future__ import annotations

from typing import Any

import click

from rik.cli.amounts import age, decimal_bytes, parse_span_s
from rik.cli.command import (
    ResourceGroup,
    complete_images,
    complete_nodes,
    connect,
    format_option,
    listed,
    plural,
)
from rik.cli.errors import Usage
from rik.cli.get import values
from rik.cli.imagewords import digest_cell, references
from rik.cli.output import Column, is_terminal, note, paint, say, warn, write_document, write_table
from rik.cli.spelling import spelled

USERS_SHOWN = 2
UNANSWERED_HEADER = "rik-unanswered"  # the names of nodes whose images are not in the list
PRUNE_TIMEOUT_S = 660.0  # many small files take long to remove, and the server has a limit of its own

node_option = click.option("--node", help="Only on this node. [default: all]", shell_complete=complete_nodes)


def _used_by(image: dict[str, Any], limit: int) -> str:
    return listed([str(name) for name in image.get("instances") or ()], limit)


LIST_COLUMNS = (
    Column("Image", references),
    Column("Digest", digest_cell, whole=True),
    Column("Size", lambda image: decimal_bytes(image.get("size_bytes")), right=True),
    Column("Layers", lambda image: str(image.get("layers", "")), right=True),
    Column("Pulled", lambda image: age(image.get("pulled_at"))),
    Column("From", lambda image: image.get("origin") or ""),
    Column("Used by", lambda image: _used_by(image, USERS_SHOWN)),
)
WIDE_COLUMNS = (
    Column("Image", lambda image: references(image, full=True)),
    Column("Digest", lambda image: str(image["digest"])),
    *LIST_COLUMNS[2:-1],
    Column("Last used", lambda image: age(image.get("used_at"))),
    Column("Used by", lambda image: _used_by(image, len(image.get("instances") or ()))),
)
PRUNED_COLUMNS = (
    Column("Image", references),
    Column("Digest", digest_cell, whole=True),
    Column("Size", lambda image: decimal_bytes(image.get("size_bytes")), right=True),
    Column("Pulled", lambda image: age(image.get("pulled_at"))),
    Column("Last used", lambda image: age(image.get("used_at"))),
)
NODE_COLUMN = Column("Node", lambda image: image.get("node") or "")


class ImageGroup(ResourceGroup):
    """`rik images` alone, or with options, is `rik images list`, as hands have learnt it elsewhere."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        listing = not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names)
        return super().parse_args(ctx, ["list", *args] if listing and not ctx.resilient_parsing else args)


@click.group(cls=ImageGroup)
def image() -> None:
    """The images that nodes have. Without a command: list them."""


@image.command("list", short_help="What each node has.")
@node_option
@format_option
def list_images(node: str | None, style: str) -> None:
    """What each node has: from where, how large, and which instances use it."""
    answer = connect().get("images.list", query={"node": node})
    unanswered = answer.headers.get(UNANSWERED_HEADER)
    if unanswered:
        warn([f"not in this list, because they cannot be asked: {unanswered.replace(',', ', ')}"])
    if write_document(answer, style):
        return
    rows = values(answer.json())
    if not rows:
        say(f"no images{f' on {node}' if node else ''}")
        note(f"next: {spelled('image pull')} alpine:3.20, or {spelled('run')} alpine:3.20 -- COMMAND…")
        return
    several = len({row.get("node") for row in rows}) > 1
    columns = WIDE_COLUMNS if style == "wide" else LIST_COLUMNS
    write_table((*columns, NODE_COLUMN) if several or style == "wide" else columns, rows)
    if is_terminal():  # elsewhere a table is rows alone, as others are
        total = sum(row.get("size_bytes") or 0 for row in rows)
        # Layers that images share are on the disk once; how much that saves, a list cannot tell.
        say(f"{plural(len(rows), 'image')}, {'at most ' if len(rows) > 1 else ''}{decimal_bytes(total)}")


@image.command("pull", short_help="Bring an image to the nodes.")
@click.argument("reference", metavar="IMAGE", shell_complete=complete_images)
@node_option
@click.option("-q", "--quiet", is_flag=True, help="Print the digest alone.")
def pull_image(reference: str, node: str | None, quiet: bool) -> int:
    """Bring IMAGE to the nodes; its registry is asked, whatever is there already.

    IMAGE is written as anywhere: alpine:3.20, ghcr.io/team/app@sha256:…, 127.0.0.1:5000/app, oci:DIR. Ctrl-C gives it
    up. An instance pulls what it needs by itself.
    """
    from rik.cli.pull import checked_reference, pull

    return pull(connect(), checked_reference(reference), node, quiet=quiet)


@image.command("prune", short_help="Remove what no instance uses.")
@click.option("--unused", metavar="TIME", default="0", help="Only what nothing has used for this long, such as 7d.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@node_option
@format_option
def prune_images(unused: str, dry_run: bool, node: str | None, style: str) -> None:
    """Remove images that no instance uses, and say what went and how much that freed."""
    try:
        unused_s = parse_span_s(unused)
    except ValueError as error:
        raise Usage(f"--unused: {error}") from error
    wanted = {"unused_s": unused_s, "dry_run": dry_run, **({"node": node} if node else {})}
    answer = connect().post("images.prune", wanted, timeout_s=PRUNE_TIMEOUT_S)
    if write_document(answer, style):
        return
    told = answer.json()
    rows = [{**row, "node": each["node"]} for each in told["nodes"] for row in each["removed"]]
    kept = sum(each["kept"] for each in told["nodes"])
    left = sum(each["size_bytes"] for each in told["nodes"])
    if rows:
        several = len(told["nodes"]) > 1 or style == "wide"
        write_table((*PRUNED_COLUMNS, NODE_COLUMN) if several else PRUNED_COLUMNS, rows)
    say(paint(_sum(len(rows), kept, told["freed_bytes"], dry_run, unused if unused_s else ""), "", bold=bool(rows)))
    if kept:
        say(f"{'to stay' if dry_run and rows else 'kept'}: {plural(kept, 'image')}, {decimal_bytes(left)}")


def _sum(count: int, kept: int, freed: int, dry_run: bool, unused: str) -> str:
    if count:
        done = "would go" if dry_run else "removed"
        return f"{plural(count, 'image')} {done}, {decimal_bytes(freed)} freed"
    if not kept:
        return "nothing to prune: there are no images"
    return (
        f"nothing to prune: every image was used in the last {unused}"
        if unused
        else ("nothing to prune: every image is used")
    )
