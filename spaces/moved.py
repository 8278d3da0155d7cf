"""Old places of modules: who imports one is told the new place in one line.

Methods may come from other distributions (entry points `routefront.methods`), which were written against the places of
their time. `install` is called by the packages whose modules have moved. The finder stands first, so that no older
copy of a package that lies somewhere on the path is found in its stead; it knows old places alone. Older code under the
same name (a promoted model brings its own) is left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

MODULES = {
    "search.ahead": "search.engine.ahead",
    "search.alone": "search.engine.whole_nodes",
    "search.budgets": "search.sampling.budgets",
    "search.callback": "search.tune.callback",
    "search.chronicle": "search.tracking.chronicle",
    "search.commands.common": "search.commands.terminal",
    "search.commands.jobs": "search.commands.cluster_jobs",
    "search.commands.look": "search.commands.frontier",
    "search.commands.model": "search.commands.promotion",
    "search.commands.model_tables": "search.commands.promotion_tables",
    "search.commands.plan": "search.commands.cluster_plan",
    "search.confidence": "search.pareto.confidence",
    "search.confirm": "search.planning.repeats",
    "search.constraints": "search.state.constraints",
    "search.creation": "search.planning.creation",
    "search.decisions": "search.rungs.decisions",
    "search.density": "search.sampling.density",
    "search.describe": "search.catalogue.describe",
    "search.doctor": "search.catalogue.doctor",
    "search.donors": "search.state.donors",
    "search.driver": "search.engine.driver",
    "search.events": "search.journal.events",
    "search.exit_plots": "search.report.exits.figures",
    "search.exit_pngs": "search.report.exits.pngs",
    "search.exit_section": "search.report.exits.section",
    "search.exits": "search.report.exits.data",
    "search.export": "search.sampling.optuna_export",
    "search.flow_plots": "search.report.exits.flow",
    "search.folder": "search.studies.folder",
    "search.follow": "search.studies.follow",
    "search.forecast": "search.planning.forecast",
    "search.front": "search.frontier.point",
    "search.front_files": "search.frontier.files",
    "search.front_png": "search.report.frontier_png",
    "search.fronts": "search.frontier.answer",
    "search.gate_plots": "search.report.gates.figures",
    "search.gate_pngs": "search.report.gates.pngs",
    "search.gate_section": "search.report.gates.section",
    "search.halting": "search.report.halting",
    "search.importance": "search.report.importance",
    "search.journal_tables": "search.journal.tables",
    "search.kept": "search.state.kept",
    "search.latency": "search.frontier.latency",
    "search.lease": "search.journal.lease",
    "search.live": "search.status.table",
    "search.mlflow_client": "search.tracking.server",
    "search.mlflow_runs": "search.tracking.runs",
    "search.mlflow_values": "search.tracking.values",
    "search.mounts": "search.journal.mounts",
    "search.observations": "search.sampling.observations",
    "search.optuna_space": "search.sampling.optuna_space",
    "search.page_data": "search.report.document",
    "search.page_parts": "search.report.html",
    "search.pages": "search.report.build",
    "search.path_plots": "search.report.paths.figures",
    "search.path_pngs": "search.report.paths.pngs",
    "search.path_section": "search.report.paths.section",
    "search.paths": "search.report.paths.data",
    "search.pictures": "search.report.mosaic",
    "search.places": "spaces.scale",
    "search.plan": "search.planning.sharing",
    "search.plots": "search.report.style",
    "search.png_parts": "search.report.png",
    "search.point_schema": "search.points.schema",
    "search.pooled": "search.frontier.pool",
    "search.predict": "search.promotion.models",
    "search.promote": "search.promotion.promotion",
    "search.promote_calibration": "search.promotion.calibration",
    "search.promote_candidate": "search.promotion.candidate",
    "search.promote_champion": "search.promotion.gates",
    "search.promote_choice": "search.promotion.choice",
    "search.promote_gates": "search.promotion.gates",
    "search.promote_ledger": "search.promotion.ledger",
    "search.proposals": "search.sampling.proposals",
    "search.published": "search.frontier.published",
    "search.query": "search.frontier.query",
    "search.registered": "search.promotion.models",
    "search.registration": "search.promotion.versions",
    "search.rows": "search.points.rows",
    "search.run": "search.tune.run",
    "search.samplers": "search.sampling.samplers",
    "search.searcher": "search.tune.searcher",
    "search.seeing": "search.status.cluster",
    "search.setbacks": "search.state.setbacks",
    "search.signals": "search.tune.signals",
    "search.simulate": "search.simulation.simulation",
    "search.spec_parts": "search.spec.tables",
    "search.stages": "search.sampling.first_stages",
    "search.storage": "search.studies.roots",
    "search.study_plots": "search.report.study.figures",
    "search.study_section": "search.report.study.section",
    "search.told": "search.sampling.optuna_storage",
    "search.toml": "search.spec.toml",
    "search.trial": "search.state.trial",
    "search.upload_process": "search.tracking.process",
    "search.uploader": "search.tracking.uploader",
    "search.variant_plots": "search.report.variants",
    "search.view": "search.sampling.view",
    "search.virtual": "search.simulation.cluster",
    "search.warm": "search.planning.warm_start",
    "search.watch": "search.report.watch",
    "trainables.augment": "trainables.data.augment",
    "trainables.cached": "trainables.training.features",
    "trainables.clutter": "trainables.data.clutter",
    "trainables.copies": "trainables.diagnostics.copies",
    "trainables.diagnostics_sampled": "trainables.diagnostics.samples",
    "trainables.donors": "trainables.training.donors",
    "trainables.earlier": "trainables.contracts.earlier",
    "trainables.encoded": "trainables.data.encoded",
    "trainables.epoch": "trainables.training.partial",
    "trainables.evaluation": "trainables.inference.evaluation",
    "trainables.exit_losses": "trainables.networks.msdnet.losses",
    "trainables.fit": "trainables.training.training",
    "trainables.fused_exits": "trainables.networks.msdnet.fast",
    "trainables.fused_positions": "trainables.networks.halting.fast",
    "trainables.fused_routers": "trainables.networks.gated.fast",
    "trainables.gate_diagnostics": "trainables.diagnostics.gates",
    "trainables.gates": "trainables.networks.gated.gates",
    "trainables.guard": "trainables.worker.guard",
    "trainables.hybrid": "trainables.data.hybrid",
    "trainables.image_files": "trainables.data.image_files",
    "trainables.imagenet_folders": "trainables.data.imagenet",
    "trainables.inference_costs": "trainables.networks.columns.costs",
    "trainables.latency": "trainables.inference.latency",
    "trainables.machine": "trainables.worker.machine",
    "trainables.macs": "trainables.execution.macs",
    "trainables.networks.budgets": "trainables.networks.msdnet.thresholds",
    "trainables.networks.collaboration": "trainables.networks.msdnet.collaboration",
    "trainables.networks.column_layers": "trainables.networks.columns.layers",
    "trainables.networks.column_pass": "trainables.networks.columns.network",
    "trainables.networks.densenet": "trainables.networks.resnet.densenet",
    "trainables.networks.exits": "trainables.networks.msdnet.exits",
    "trainables.networks.halting_heads": "trainables.networks.halting.heads",
    "trainables.networks.halting_pass": "trainables.networks.halting.network",
    "trainables.networks.hard_pass": "trainables.networks.gated.network",
    "trainables.networks.imagenet": "trainables.networks.resnet.imagenet",
    "trainables.networks.junctions": "trainables.networks.columns.network",
    "trainables.networks.msdnet_names": "trainables.networks.msdnet.network",
    "trainables.networks.multipath_bodies": "trainables.networks.multipath.bodies",
    "trainables.networks.multipath_choice": "trainables.networks.multipath.layers",
    "trainables.networks.multipath_folding": "trainables.networks.multipath.fast",
    "trainables.networks.multipath_layers": "trainables.networks.multipath.layers",
    "trainables.networks.multipath_names": "trainables.networks.multipath.bodies",
    "trainables.networks.multipath_sweep": "trainables.networks.multipath.network",
    "trainables.networks.operations": "trainables.networks.msdnet.operations",
    "trainables.networks.positions": "trainables.networks.halting.positions",
    "trainables.networks.preact": "trainables.networks.halting.preact",
    "trainables.networks.routing_layers": "trainables.networks.multipath.routing",
    "trainables.optimisers": "trainables.contracts.optimisers",
    "trainables.parquet_files": "trainables.data.parquet",
    "trainables.policy": "trainables.networks.gated.policy",
    "trainables.probe": "trainables.worker.probe",
    "trainables.ray_trainable": "trainables.worker.ray_trainable",
    "trainables.remote": "trainables.worker.remote",
    "trainables.router": "trainables.contracts.router",
    "trainables.shelf": "trainables.worker.shelf",
    "trainables.sources": "trainables.data.published",
    "trainables.splits": "trainables.data.splits",
    "trainables.stages": "trainables.training.stages",
}
"""Modules by their old names."""
NAMES = {
    "search.commands.look": {
        "search.commands.report": "report watch",
        "search.commands.report:register": "register_report",
        "search.commands.terminal": "Name Names",
    },
    "search.commands.study": {
        "search.commands.terminal": "Name",
    },
    "search.constraints": {
        "search.status.table": "unmet_constraints",
    },
    "search.decisions": {
        "search.rungs.brackets": "PRIOR_TRIALS bracket_of epochs_to_come",
    },
    "search.donors": {
        "search.planning.donors": "Fetch Named named store",
    },
    "search.driver": {
        "search.state.retention": "kept_checkpoints",
    },
    "search.engine": {
        "search.engine.ahead": "Ahead",
        "search.engine.engine": "Engine Listener engine_at",
        "search.engine.whole_nodes": "Alone",
        "search.errors": "InputError",
        "search.journal.events": "Event Events REPORT_KEYS",
        "search.rungs.decisions": "Decision decide limit_of promotable",
        "search.sampling.proposals": "Papers Proposer seed_of",
        "search.spec.study": "StudySpec",
        "search.state.donors": "Donors without",
        "search.state.setbacks": "MEMORY too_many",
        "search.state.state": "StudyState",
        "search.state.trial": "Donor Trial",
        "spaces.donor": "STUDY",
        "spaces.space": "Space",
    },
    "search.exit_pngs": {
        "search.report.png": "GREY",
    },
    "search.flow_plots": {
        "search.report.style": "ACCURACY_SCALE mixed",
    },
    "search.folder": {
        "search.studies.roots": "COMMAND_PATIENCE DRIVER_PATIENCE",
    },
    "search.front_files": {
        "search.commands.frontier_tables": "front_table published_table",
        "search.units": "dataset_name printable",
    },
    "search.frontier": {
        "search.pareto.front": (
            "Archive Floats Reference exclusive_hypervolume "
            "front_layers hypervolume knee non_dominated place_among "
            "standings"
        ),
    },
    "search.journal": {
        "search.errors": "InputError",
        "search.journal.database": ("Journal LEASE_SECONDS LeaseLostError OUTAGE_SECONDS sqlite_address"),
        "search.journal.events": "Event",
        "search.journal.lease": "alive",
        "search.journal.mounts": "is_network",
        "search.journal.tables": "EVENTS LEASES METADATA open_engine",
        "search.studies.stored": "journal_address",
    },
    "search.kept": {
        "search.planning.creation": "record_of",
    },
    "search.live": {
        "search.status.display": "watching",
        "search.status.story": "trial_story",
    },
    "search.optuna_space": {
        "search.sampling.proposals": "published",
    },
    "search.page_parts": {
        "search.report.paths.section": "trial_key",
    },
    "search.path_plots": {
        "search.report.style": "CLASS_COLOURS DASHES LENGTH_SCALE MOST_CLASSES distinct",
    },
    "search.path_pngs": {
        "search.report.pictures": "draw_paths",
    },
    "search.path_section": {
        "search.report.sections": "path_sections",
    },
    "search.paths": {
        "search.state.retention": "MOST_TRIALS chosen",
    },
    "search.plots": {
        "search.report.frontier_png": "add_legend draw_png",
    },
    "search.png_parts": {
        "search.report.variants": "fronts_picture",
    },
    "search.points": {
        "search.points.files": "Filters compact read write",
        "search.points.schema": "FEW_VALUES SCHEMA VERSION",
    },
    "search.pooled": {
        "search.points.table": "state_table",
    },
    "search.registered": {
        "search.promotion.history": "history rollback",
    },
    "search.report": {
        "search.frontier.published": "Published",
        "search.pareto.confidence": "wilson",
        "search.report.document": "as_data",
        "search.report.html": "STYLE method_name table",
        "search.report.importance": "Importances",
        "search.report.page": "SCRIPT fresh_parts page_html report_html",
        "search.report.paths.data": "Paths",
        "search.report.record": "Report",
        "search.report.sections": "path_sections",
        "search.units": "knobs_text show_count show_seconds show_share",
    },
    "search.rungs": {
        "search.engine.driver": "driver_at",
        "search.engine.engine": "engine_at",
        "search.tune.scheduler": "RungScheduler",
    },
    "search.samplers": {
        "search.sampling.optuna_samplers": "ask_nsga2 ask_tpe extremes",
    },
    "search.spec": {
        "search.errors": "InputError",
        "search.spec.study": "StudySpec corners",
        "search.spec.tables": (
            "BudgetSpec ConstraintSpec DataSpec Part ResourceSpec RungSpec SamplerSpec StageSpec TrackingSpec WarmSpec"
        ),
        "search.spec.toml": "merge read_toml",
        "search.studies.roots": "cache_of root_of studies_root",
        "spaces.donor": "with_donor",
        "spaces.space": "Choice Fixed Range Space nearest",
        "spaces.written": "narrowed",
    },
    "search.stages": {
        "search.engine.shared_stages": "SharedStages",
    },
    "search.state": {
        "search.journal.events": "Event WITHOUT_A_DRIVER check_names",
        "search.pareto.front": "Archive",
        "search.state.constraints": "Constraints",
        "search.state.kept": "Kept",
        "search.state.setbacks": "DIED MEMORY NODE NODE_SECONDS",
        "search.state.state": "StudyState",
        "search.state.trial": "Donor History Stage Trial",
    },
    "search.storage": {
        "search.studies.courier": "Courier",
        "search.studies.folder": "bring write_spec",
        "search.studies.marker": "StoredMarker",
    },
    "search.study": {
        "search.studies.stored": "StoredStudy all_studies load_data",
    },
    "search.tracking": {
        "search.journal.database": "Journal sqlite_address",
        "search.journal.events": "Event",
        "search.tracking.process": "FIRST_DELAY LONGEST_DELAY UNREACHABLE",
        "search.tracking.server": "check_server default_uri shown",
        "search.tracking.tracker": "Tracker",
    },
    "search.units": {
        "search.pareto.confidence": "wilson",
    },
    "search.view": {
        "search.sampling.optuna_samplers": "as_optuna",
        "spaces.space": "drawn",
    },
    "trainables.checkpoints": {
        "trainables.serving": "load_network load_prepared",
    },
    "trainables.data": {
        "spaces.space": "nearest",
        "trainables.contracts.network": "Task",
        "trainables.data.augment": "batches in_order normalise to_device",
        "trainables.data.datasets": "NAMES catalogue default_root download load",
        "trainables.data.errors": "DataError DataMissing",
        "trainables.data.image_files": "export read_folder read_images",
        "trainables.data.parquet": "is_parquet read_parquet",
        "trainables.data.published": "DatasetStatus read_named",
        "trainables.data.splits": "Augment Data Source Split at_most digest divide statistics",
    },
    "trainables.diagnostics": {
        "trainables.contracts.method": "Method",
        "trainables.contracts.network": "Inference Knobs Routed RoutedNetwork",
        "trainables.data.augment": "normalise to_device",
        "trainables.data.encoded": "Images",
        "trainables.data.splits": "Data",
        "trainables.diagnostics.copies": "AUGMENTATIONS agreement copy_of divergence",
        "trainables.diagnostics.gates": "measuring routes",
        "trainables.diagnostics.measure": (
            "Diagnostics MOST_IMAGES ROUTED diagnose routed_blocks unpacked usual_setting"
        ),
        "trainables.diagnostics.samples": "log_odds of_some",
        "trainables.inference.evaluation": "exit_logits",
    },
    "trainables.epoch": {
        "trainables.training.training": "train_epoch",
    },
    "trainables.execution": {
        "trainables.execution.rows": (
            "Sums others overwriting put run_either run_rows split_rows sums_of take thinned"
        ),
    },
    "trainables.fused": {
        "trainables.contracts.network": "RoutedNetwork",
        "trainables.contracts.router": "Router",
        "trainables.execution.fused": "FusedConv LAST folded",
        "trainables.inference.prepare": "FAST SelfPreparing",
        "trainables.networks.gated.fast": "prepared_router",
        "trainables.networks.halting.fast": "FusedNormAct FusedPreActUnit FusedScoreConv",
        "trainables.networks.halting.positions": "ScoreConv",
        "trainables.networks.halting.preact": "NormAct PreActUnit",
        "trainables.networks.msdnet.fast": "FastDenseLayer Pooled bottlenecks_of pools_all",
        "trainables.networks.msdnet.network": "DenseLayer",
        "trainables.networks.multipath.fast": "fold_norms",
        "trainables.networks.resnet.cifar": "ResidualBlock StridedPointwise",
        "trainables.networks.resnet.fast": "FusedBlock",
    },
    "trainables.fused_routers": {
        "trainables.execution.fused": "folded",
    },
    "trainables.image_files": {
        "trainables.data.decoding": "decode",
    },
    "trainables.machine": {
        "trainables.training.precision": "computes_bfloat16",
    },
    "trainables.networks.collaboration": {
        "trainables.methods.imta": "begin_behind",
    },
    "trainables.networks.columns": {
        "trainables.networks.columns.layers": "Column",
        "trainables.networks.columns.tree": (
            "CHANNELS COARSEST FORKS MOST_SCALES NETWORKS Node PYRAMIDS "
            "Pyramid ROUTED_NETWORKS STATIC_NETWORKS columns_for exits_at "
            "exits_from kind_and_length length_for nodes_of scales_of "
            "sinks_at way_to"
        ),
    },
    "trainables.networks.gated": {
        "trainables.contracts.network": "Inference Knobs Routed Task Unit",
        "trainables.contracts.router": "Router",
        "trainables.execution.rows": "Sums overwriting run_either run_rows split_rows take",
        "trainables.networks.gated.gates": "DETACHED LocalRouter hard_at image_noise relax",
        "trainables.networks.gated.network": (
            "GatedResNet OPEN_STD SAMPLING_KNOBS SKIPS THRESHOLDS THRESHOLD_KNOB hard_pass limits_of skip_of thresholds"
        ),
        "trainables.networks.resnet.cifar": "Body ResidualNetwork Shape StridedPointwise ZeroPadShortcut",
    },
    "trainables.networks.halting": {
        "trainables.contracts.network": "Inference Knobs Routed Task Unit",
        "trainables.execution.macs": "macs_of",
        "trainables.networks.halting.heads": "HaltingHead SpatialHead ponder_of remaining threshold_of",
        "trainables.networks.halting.network": (
            "GATHER_FROM_MACS HaltingNetwork SpatialHaltingNetwork Step by_images by_positions"
        ),
        "trainables.networks.halting.positions": "dilated",
        "trainables.networks.halting.preact": "PreActBody PreActUnit",
        "trainables.networks.resnet.cifar": "ResidualNetwork",
    },
    "trainables.networks.initialisation": {
        "trainables.networks.gated.gates": "first_gates",
    },
    "trainables.networks.msdnet": {
        "trainables.contracts.network": "Task",
        "trainables.networks.memory": "require_memory",
        "trainables.networks.msdnet.exits": "ExitNetwork",
        "trainables.networks.msdnet.network": (
            "DenseLayer Layout MSDNet Stage Stem Transition classifier_of conv_bn_relu grow imagenet_stem stages_of"
        ),
    },
    "trainables.networks.multipath": {
        "trainables.contracts.network": "Inference Knobs Routed RoutedNetwork Task Unit",
        "trainables.execution.macs": "macs_of",
        "trainables.networks.multipath.bodies": "Body Segment",
        "trainables.networks.multipath.layers": "Paths apart grouped_pays wide",
        "trainables.networks.multipath.network": "KNOBS MultiPathNetwork Pruning pruned_sweep",
        "trainables.networks.multipath.routing": "CrossPrediction",
    },
    "trainables.networks.resnet": {
        "trainables.contracts.network": "Inference Knobs Routed RoutedNetwork Task Unit",
        "trainables.execution.macs": "macs_of",
        "trainables.execution.rows": "overwriting",
        "trainables.networks.resnet.cifar": (
            "BasicBlock Body Classifier NETWORKS ResidualBlock "
            "ResidualNetwork SHORTCUTS SMALLEST_IMAGE Shape StaticResNet "
            "StridedPointwise ZeroPadShortcut blocks_per_group "
            "cifar_resnet every projection shortcut_of"
        ),
    },
    "trainables.splits": {
        "trainables.data.errors": "DataError DataMissing",
    },
}
"""Names that are not in the module which their old one became, by their old module: {module: names}."""


class Finder:
    """Raises `ModuleNotFoundError` with the new place of a module or name of one package, and finds nothing else."""

    def __init__(self, package: str, places: Sequence[str]) -> None:
        self.package, self.places = package, list(places)

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        """See `importlib.abc.MetaPathFinder`."""
        running = sys.modules.get(self.package)
        if not fullname.startswith(f"{self.package}.") or list(getattr(running, "__path__", ())) != self.places:
            return
        told = new_place(fullname)
        if told:
            # without the name of the module: `from package import name` would take it for "not there, go on"
            raise ModuleNotFoundError(told)


def new_place(name: str) -> str:
    """One line that says where a module, or a name of a module, is now; empty where nothing has moved."""
    if name in MODULES:
        return f"{name} has moved: import {MODULES[name]}"
    module, _, last = name.rpartition(".")
    for home, names in NAMES.get(module, {}).items():
        if last in names.split():
            home, _, new = home.partition(":")
            return f"{last} of {module} has moved: from {home} import {new or last}"
    return ""


def install(package: str, places: Sequence[str]) -> None:
    """Tell importers of old places of a package, whose folders are `places`; once, however often it is called."""
    for finder in sys.meta_path:
        if isinstance(finder, Finder) and (finder.package, finder.places) == (package, list(places)):
            return
    sys.meta_path.insert(0, Finder(package, places))  # type: ignore[arg-type]
