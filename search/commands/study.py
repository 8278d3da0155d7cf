"""Commands that look at studies, and change how long they run: list, status, stop, extend."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from search.commands.consent import Trust, opened
from search.commands.terminal import Json, Name, Studies, err, left_out, out, print_json, said
from search.errors import InputError
from search.units import parse_seconds, show_seconds


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("list")(list_studies)
    app.command("status")(status)
    app.command("stop")(stop)
    app.command("extend")(extend)


def failures(state: Any) -> None:
    """Say on stderr which trials failed and why, the first five of them."""
    failed = [trial for trial in state.trials.values() if trial.state == "failed"]
    for trial in failed[:5]:
        err.print(f"  {trial.id} ({trial.method}) failed: {trial.reason}", soft_wrap=True)
    if len(failed) > 5:
        err.print(f"  and {len(failed) - 5} more: routefront status STUDY")


def list_studies(studies: Studies = None, as_json: Json = False) -> None:
    """Studies here.

    Example: routefront list
    """
    from search.studies.roots import studies_root

    records = _records(studies_root(studies))
    if as_json:
        print_json(records)
        return
    if not records:
        out.print(f"no studies in {studies_root(studies)}; start one with: routefront search --preset digits")
        return
    table = Table("study", "state", "trials", "epochs", "hypervolume", "front", box=None, padding=(0, 2))
    for r in records:
        table.add_row(
            r["study"], r["state"], str(r["trials"]["total"]), f"{r['epochs']:g}", f"{r['hypervolume']:.4f}",
            str(r["front_points"]),
        )  # fmt: skip
    out.print(table)


def _records(root: Path) -> list[dict[str, Any]]:
    """What is told of every study under a root, oldest first; of those at rest without reading their journals."""
    from search.studies.summary import kept_under

    known, whole = kept_under(root)
    if whole:
        return list(known.values())
    from search.studies.stored import all_studies
    from search.studies.summary import record_of

    records = []
    for study in all_studies(root, left_out):
        try:
            records.append(known.get(study.folder.path) or record_of(study, study.state()))
        except Exception as error:  # whatever is wrong with one study, the others are shown
            expected = isinstance(error, InputError | OSError)
            left_out(study.folder.path, said(error) if expected else f"{type(error).__name__}: {said(error)}")
    return records


def status(
    study: Name,
    trial: Annotated[str | None, typer.Option(help="Tell one trial's whole story.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until it ends.")] = False,
    trust: Trust = False,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """Running, stopped, finished and failed trials; hypervolume and cost so far.

    Examples: routefront status digits --watch
    routefront status digits --trial t0003
    """
    from search.status.cluster import cluster_record, cluster_table
    from search.status.story import trial_story
    from search.status.table import status_table
    from search.studies.summary import record_of

    if trial is not None:
        found = opened(study, studies, trust)
        story = trial_story(found, trial)
        print_json(story) if as_json else _print_story(story)
        return
    while True:
        found = opened(study, studies, trust)  # its limits may have been extended
        state = found.state()
        record = record_of(found, state)
        cluster = cluster_record(found.spec, state, time.time())
        if as_json:
            print_json({**record, "cluster": cluster})
        else:
            if watch and out.is_terminal:
                out.clear()
            out.print(status_table(found.spec, state, record["state"]))
            if record["state"] == "running" or cluster["setbacks"]["latest"] or cluster["uncaptured"]:
                for line in cluster_table(cluster):
                    out.print(line)
            failures(state)
        if not watch or record["state"] != "running":
            return
        time.sleep(2)


def _print_story(story: dict[str, Any]) -> None:
    out.print(Text.assemble((story["trial"], "bold"), f"  {story['state']}  {story['reason']}"), soft_wrap=True)
    out.print(f"  proposed: {story['why']}", soft_wrap=True)
    out.print(f"  config:   {story['config']}", soft_wrap=True)
    for step in story["events"]:
        out.print(f"  {step['at']:>8}  {step['says']}", soft_wrap=True)


def stop(study: Name, studies: Studies = None, as_json: Json = False) -> None:
    """Stop gently: what runs is checkpointed; `resume` goes on.

    Example: routefront stop digits
    """
    found = opened(study, studies)
    if found.status() != "running":
        raise InputError(f"study {found.spec.name!r} is not running; `routefront status {found.spec.name}` shows it")
    found.folder.ask_to_stop()
    if as_json:
        print_json({"study": found.spec.name, "stopping": True})
    else:
        out.print(
            f"study {found.spec.name} stops within seconds, what runs is checkpointed;"
            f" go on with: routefront resume {found.spec.name}",
            soft_wrap=True,
        )


def extend(
    study: Name,
    trials: Annotated[int | None, typer.Option(help="A new number of trials in all.")] = None,
    time_limit: Annotated[str | None, typer.Option("--time", help="A new limit of wall time in all.")] = None,
    cost: Annotated[float | None, typer.Option(help="A new limit of cost in all.")] = None,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """Give a study another budget, also while it runs.

    Example: routefront extend digits --trials 200 --time 12h
    """
    if trials is time_limit is cost is None:
        raise InputError("say which limit is to be another one: --trials, --time, --cost")
    found = opened(study, studies)
    found = found.extend(trials=trials, time=parse_seconds(time_limit) if time_limit else None, cost=cost)
    if found.kept().before:
        from search.state.kept import otherwise

        err.print(otherwise(found.spec.name), soft_wrap=True)
    budget, running = found.spec.budget, found.status() == "running"
    if as_json:
        print_json({"study": found.spec.name, "budget": budget.model_dump(mode="json"), "running": running})
        return
    limits = [f"{budget.trials} trials"]
    limits += [show_seconds(budget.time)] if budget.time is not None else []
    limits += [f"cost {budget.cost:g}"] if budget.cost is not None else []
    then = "the search that runs takes it up within seconds" if running else f"now: routefront resume {found.spec.name}"
    out.print(f"study {found.spec.name}: at most {', '.join(limits)}; {then}", soft_wrap=True)
