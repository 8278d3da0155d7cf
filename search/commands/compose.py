"""The command `compose`: cascades out of a study's checkpoints."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from search.commands.consent import Trust, opened
from search.commands.terminal import Json, Names, Studies, out, print_json, progress
from search.errors import InputError
from search.units import show_count, show_share


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("compose")(compose)


def compose(
    study: Names,
    members: Annotated[int, typer.Option(help="At most this many members in a cascade, 2 to 4.")] = 3,
    point: Annotated[
        list[str] | None,
        typer.Option(help="Only these operating points; of several studies STUDY:POINT. May be repeated."),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(help="probability-last, margin-mean, entropy-last ...; may be repeated."),
    ] = None,
    splits: Annotated[int, typer.Option(help="How often the validation images are halved to score the choice.")] = 2,
    most: Annotated[int, typer.Option(help="At most this many operating points take part: the first fronts.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the halves.")] = 0,
    trust: Trust = False,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """Cascades of trained networks: a cheap one answers, images of which it is not sure go on to the next one.

    Nothing is trained or run: checkpoints keep what they answer on every validation image. Members and thresholds are
    chosen on one half of these images and scored on the other, and the accuracy that is told is what is expected
    elsewhere. The cascades become points of the first study: `routefront frontier --with-cascades` shows them.

    Examples: routefront compose digits
    routefront compose night morning --members 2 --rule margin-last
    """  # fmt: skip
    from search.cascades.compose import RULES, rule_of
    from search.cascades.compose import compose as composed
    from search.engine.driver import driving

    rules = [rule_of(text) for text in rule] if rule else RULES
    found = [opened(name, studies, trust) for name in dict.fromkeys(study)]
    if most < 2:
        raise InputError(f"--most {most}: a cascade takes at least two operating points")
    with driving(found[0]) as driver, progress("reading predictions", as_json) as spinner:
        record = composed(
            found, driver, points=point or (), rules=rules, most_members=members, most=most, splits=splits, seed=seed,
            say=spinner.update,
        )  # fmt: skip
    if as_json:
        print_json(record)
    else:
        _show(found[0].spec.name, record)


def _show(name: str, record: dict[str, Any]) -> None:
    from rich.table import Table

    out.print(
        f"{len(record['points'])} cascades on the front, out of {record['compared']:,} that were compared"
        f" ({record['members']} members, {record['images']} validation images, {record['seconds']:.1f} s)",
        soft_wrap=True,
    )
    table = Table("MACs, at most", "single", "with cascades", box=None, padding=(0, 2))
    for row in record["gains"]["budgets"]:
        shares = [row["single"], row["cascade"]]
        best = max((share for share in shares if share is not None), default=None)
        table.add_row(show_count(row["budget"]), *("-" if s is None else show_share(s) for s in (shares[0], best)))
    out.print(table)
    fewer = record["gains"]["median_fewer"]
    out.print(f"points of the single front are reached with {fewer:.2f} times fewer MACs in the median; accuracies of")
    out.print("cascades are what is expected on other images; those of single points are as they were measured")
    out.print(f"show them: routefront frontier {name} --with-cascades", soft_wrap=True)
