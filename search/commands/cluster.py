"""Commands about clusters: `routefront cluster render`; others are in `search.commands.cluster_plan` and `.jobs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.commands import cluster_jobs, cluster_plan
from search.commands.terminal import Json, err, out, print_json
from search.errors import InputError

if TYPE_CHECKING:
    from cluster.manifests.description import Description
    from cluster.manifests.inputs import StudyFile

app = typer.Typer(no_args_is_help=True, help="Where studies run: what fits, manifests, jobs.", rich_markup_mode="rich")


def register(parent: typer.Typer) -> None:
    """Add these commands to the command line."""
    cluster_plan.register(app)
    cluster_jobs.register(app)
    parent.add_typer(app, name="cluster")


@app.command()
def render(
    description: Annotated[Path, typer.Argument(help="A description of a cluster (TOML).", show_default=False)],
    to: Annotated[
        str | None, typer.Option("--to", help="kuberay, ray-up, slurm or container (default: all that it describes).")
    ] = None,
    where: Annotated[Path | None, typer.Option("--out", help="A file; a folder where --to is left out.")] = None,
    as_json: Json = False,
) -> None:
    """Write what starts a cluster: KubeRay RayJob, `ray up` YAML, Slurm batch script, container recipe.

    Examples: routefront cluster render cluster.toml --to kuberay --out rayjob.yaml
    routefront cluster render cluster.toml --out manifests
    """
    from cluster.manifests.description import Description
    from cluster.manifests.inputs import Versions, notes, wanted
    from cluster.manifests.kinds import renderers
    from spaces.space import nearest

    kinds = renderers()
    if to is not None and to not in kinds:
        raise InputError(f"--to {to!r} is no kind of manifest{nearest(to, list(kinds))}")
    if to is None and where is None:
        raise InputError("say which with --to (kuberay, ray-up, slurm, container), or where all go with --out FOLDER")
    try:
        cluster = Description.read(description)
        chosen = [to] if to else wanted(cluster)
        if not chosen:
            raise ValueError(
                f"{description} describes no way to start it: give it storage.claim (Kubernetes), [cloud] or [slurm]"
            )
        study = study_file(cluster, description.parent)
        texts = {kind: kinds[kind][1](cluster, study, Versions.installed()) for kind in chosen}
    except ValueError as error:
        raise InputError(str(error)) from None
    for note in notes(cluster, study, chosen):
        err.print(f"note: {note}", soft_wrap=True)
    if where is None:
        (text,) = texts.values()
        print_json({"to": to, "text": text}) if as_json else typer.echo(text, nl=False)
        return
    files = {where if to else where / kinds[kind][0]: text for kind, text in texts.items()}
    _write(files)
    if as_json:
        print_json({"files": {kind: str(path) for kind, path in zip(chosen, files, strict=True)}})
    else:
        for kind, path in zip(chosen, files, strict=True):
            out.print(f"{kind:<10}{path}", soft_wrap=True)


def study_file(cluster: Description, folder: Path) -> StudyFile:
    """The study of a description, checked like one that is launched, with the description's journal and server.

    Raises `InputError` where the study is wrong, `ValueError` where it carries a password.
    """
    from cluster.manifests.inputs import StudyFile
    from search.spec.study import StudySpec
    from search.spec.toml import merge, preset, read_toml, to_toml

    path = preset(cluster.preset) if cluster.preset else folder / str(cluster.study)
    changes: dict[str, Any] = {"journal": cluster.journal.address if cluster.journal else None}
    values = merge(read_toml(path), changes)
    spec = StudySpec.parse(values, str(path))
    return StudyFile(
        spec.name,
        to_toml(values),
        spec.resources.cpus_per_trial,
        spec.resources.gpus_per_trial,
        tuple(address for address in (spec.journal, spec.tracking.uri) if address),
    )


def _write(files: dict[Path, str]) -> None:
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            if text.startswith("#!"):
                path.chmod(0o755)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
