"""Docstrings of modules whose content is another one now (`DOCS`, by new module), and of packages (`PACKAGES`, by folder)."""

from __future__ import annotations

PACKAGES: dict[str, str] = {
    "search/catalogue": "What can be asked without a study: the methods and data sets there are, whether this machine is ready.",
    "search/engine": "The one writer of a study: which trial comes next, what becomes of a report, what lies in the folder.",
    "search/frontier": "Questions about operating points: pools of studies, filters, fronts, measured latency, printed results.",
    "search/journal": "The events of a study in a database, and the lease that names its one writer.",
    "search/pareto": "The mathematics of fronts: dominance, layers, hypervolume, how sure a front is. Knows nothing of ours.",
    "search/planning": "What is decided before a study trains: its creation, earlier studies, repeats, forecasts, shares of nodes.",
    "search/points": "Operating points as rows of Parquet files: their schema, how rows are made, written and read.",
    "search/promotion": "From an operating point to a served model: choice, gates, versions, aliases, prediction, the way back.",
    "search/report": "The report of a study: one HTML page, its pictures as PNG files, and the live page.",
    "search/report/exits": "Networks with exits in a report: what is drawn, as figures, PNG files and sections.",
    "search/report/gates": "Networks with gates in a report: figures, PNG files and sections.",
    "search/report/paths": "The paths of the best trials in a report: what is drawn, as figures, PNG files and sections.",
    "search/report/study": "How a study went, in a report: figures and sections.",
    "search/rungs": "Whether a trial goes on: rungs, brackets, and the decisions on trials that reach a rung.",
    "search/sampling": "What is tried next: what samplers see, the samplers, the proposals.",
    "search/simulation": "A search in virtual time: the same engine, with a cluster and trials that are computed.",
    "search/spec": "The study file: its tables, what follows from it, reading and writing TOML, the files that ship.",
    "search/state": "The state of a study, a fold over its events: trials, constraints, setbacks, which checkpoints are kept.",
    "search/status": "A study's state in words: tables, the live display, one trial's story, the cluster.",
    "search/studies": "Studies as they are stored: roots, folders, object storage, opening and following one.",
    "search/tracking": "A study in MLflow: its runs, the process that uploads them, the server's addresses.",
    "search/tune": "Ray Tune: the only room that speaks to it. Searcher, scheduler, callback, and the run of a study.",
    "trainables/contracts": "What networks and methods are: the contract of a network, the record of a method, its recipe.",
    "trainables/data": "Data sets: readers, splits that never change, augmentation, images that are decoded when they are needed.",
    "trainables/diagnostics": "What is measured of a trained network beside its curve: paths, gates, augmented copies, samples.",
    "trainables/execution": "Executing only what is decided: rows of a batch, fused convolutions, the one counter of MACs.",
    "trainables/inference": "Trained networks: their curves, their latency, their forms prepared for inference.",
    "trainables/networks/columns": "Networks of columns with junctions (McGill and Perona, ICML 2017).",
    "trainables/networks/gated": "Residual networks whose blocks have gates, their gates and routers.",
    "trainables/networks/halting": "Networks that halt: adaptive computation time for images and for positions.",
    "trainables/networks/msdnet": "MSDNets: dense layers on several scales, with exits on the way.",
    "trainables/networks/multipath": "Networks of parallel paths with soft routing between them (Tissera et al., arXiv 2107.02450).",
    "trainables/networks/resnet": "Residual and dense bodies for CIFAR and ImageNet, which several families build on.",
    "trainables/training": "Training: the loop, an epoch's steps, shared first stages, features that are kept.",
    "trainables/worker": "What runs on a node: the Ray trainable, its place for checkpoints, its guard, the probe of a machine.",
}

DOCS: dict[str, str] = {
    "search.planning.donors": """Donors that a study file names: checkpoints, weights or registered models that trials begin with.

They are read when the study is created, compared with every configuration that may begin with them, and copied into
the study's folder under their digests (``checkpoints/donors/<digest>``): workers read them there and never ask a
registry. `search.state.donors` chooses among the study's own networks.
""",
    "search.state.donors": """The networks of a study itself that its trials may begin with (`trainables.training.donors`).

``donor = "study"`` is another trial of the study: of all trials that are over, that began with no donor themselves
and whose body is the one asked for, the best: finished before stopped, then by the accuracy that its curves show on
the validation split. It is chosen when the trial is asked for, from the state right then, and its event names it. Who
is over stays so, hence the best of a body only ever gives way to a better one: its checkpoint is kept, and any other
that trials begin with while they are not over. Where there is none yet a trial begins from scratch, at a learning
rate drawn as for others (`without`). Donors that the study file names are read in `search.planning.donors`.
""",
    "trainables.training.precision": "What arithmetic a device computes quickly.",
    "trainables.worker.machine": "What an epoch costs a machine: processor time, memory of the process and the GPU.",
    # -- search -----------------------------------------------------------------------------------------------------
    "search.studies.stored": """Studies as they are stored: opening one by name, reading its state, changing its limits.

A study is a folder with its study file (`search.studies.folder`) and a journal. Reading needs no lease;
`search.study.Study` adds what writes.
""",
    "search.studies.roots": """Where studies lie: a folder, or an address of object storage that a folder of this machine caches.

A root of studies may be an address such as ``s3://BUCKET/FOLDER``. The journal of such a study is in PostgreSQL. What
lies in the storage is the study's file, its operating points and its checkpoints, under the names that they have in
a folder (`search.studies.folder`).
""",
    "search.studies.courier": """A driver's copies of a study's files in object storage, made in a thread of their own.

Workers push and pull checkpoints themselves (`trainables.worker.shelf`).
""",
    "search.studies.marker": "A marker in object storage by which nodes are asked whether they see a study.",
    "search.state.retention": """Which checkpoints of a study are kept, and which trials have their paths drawn.

Both are functions of the state alone: the driver removes by them, `gc` reclaims by them, reports choose by them.
""",
    "search.status.table": "A study's state in words: one line, a table, its best points, what constraints are missed by.",
    "search.status.display": "The live display of a study at work: a table in a terminal, a line now and then elsewhere.",
    "search.status.story": "Everything that the journal tells of one trial.",
    "search.rungs.brackets": """Brackets of rungs: which one a trial belongs to, and how many epochs trials still train on average.""",
    "search.sampling.first_stages": """First stages that trials share: which are proposed again, behind which one a trial may begin.

What is proposed is a pure function of the study's seed, the number of the ask and the state, like
`search.sampling.proposals`. `trainables.training.stages` says what names a stage and how a worker stores it; only
the driver decides who uses it (`search.engine.shared_stages`), and every decision is an event.
""",
    "search.engine.shared_stages": """The stored first stages of a study that is being driven.

`search.sampling.first_stages` says which are proposed again, `trainables.training.stages` how workers store them.
""",
    "search.sampling.optuna_samplers": """Samplers that are Optuna's: TPE and NSGA-II, told the trials of a view anew at every ask.""",
    "search.sampling.samplers": """Samplers by name: what each proposes, given what the trials so far have taught.

Every sampler is a pure function of a `View` of the study and a seed. Optuna's are told the trials
anew at every ask (`search.sampling.optuna_storage`), so nothing of theirs can be lost.

========= ======================================================================================
budgets   a TPE for a compute budget drawn anew at every ask (`search.sampling.budgets`)
tpe       Optuna's multivariate TPE over one score a trial (`search.sampling.observations`)
nsga2     Optuna's NSGA-II over error and log10 MACs of the points that trials ended with
evolution a trial on the front, some of its parameters drawn anew or moved a little
qmc       scrambled Sobol points over all methods' parameters together
random    uniform draws
========= ======================================================================================

Those of Optuna are in `search.sampling.optuna_samplers`.
""",
    "search.frontier.files": """A front as CSV and Parquet.

Names come from study files, plug-ins and folders that somebody else made: a cell that a spreadsheet would
take for a formula begins with an apostrophe (OWASP, "CSV injection").
""",
    "search.frontier.pool": """The operating points of studies, to ask questions of: one study's, or several studies' together.

A study's points are read from its Parquet files where these are whole, which the journal says: its
work ended in good order. Those of a running or interrupted study come from the journal itself, which
has what was not flushed yet.
""",
    "search.points.table": "All operating points of a study's state as one table.",
    "search.units": """Numbers and names as people write and read them: 20M, 1.5G, 2h, 97.2 %; text that a terminal can show.

Names come from study files, plug-ins and folders that somebody else made: control characters never reach a terminal.
""",
    "search.commands.frontier": "The command `frontier`: the operating points of studies that no other one beats.",
    "search.commands.report": "Commands that draw a study's report: `report` writes it, `watch` shows it live.",
    "search.commands.frontier_tables": """Fronts and printed results as tables of a terminal; names are no markup there.""",
    "search.report.record": "What a report is drawn from: one plain record.",
    "search.report.page": """The page of a report: one HTML file that needs nothing but itself.

The page is made of a plain record (`search.report.record`), so it can be drawn from a running study, a finished one
or several. It carries plotly.js inside (4.8 MB), states a content security policy that forbids every load
from outside and every script but its own (by their digests, so that an attribute of an element can
run nothing either), and works from a file. Whatever a user named is escaped. The interactive parts are
drawn by `page.js` from one JSON document (`search.report.document`); what is said in words stands in the page.
""",
    "search.report.style": """What the pictures of a report share: colours, axes, scales, layout.

Accuracy is that of the validation split; MACs are multiply-accumulates per image. A method has the
same colour and marker in every picture. The colours keep a distance of 18 (CIE 1976) from each other
for normal, protan and deutan sight, and enough contrast on white and on near-black.
""",
    "search.report.frontier_png": """The frontier as a PNG file.

One picture is of a study's report, drawn from plain values: a table of operating points (`search.points.schema.SCHEMA`)
and rows of the front. The other is of a question's answer: the joint front with intervals, each method's own, the
papers' points.
""",
    "search.report.variants": """Accuracy against a cost, one line for every method and variant, as a figure and as a picture.""",
    "search.report.pictures": "All pictures of a report as PNG files, for pages that hold no script and for papers.",
    "search.report.paths.pngs": "The pictures of paths as matplotlib figures: skip ratios, computation by class, t-SNE, KL, images.",
    "search.report.sections": "The sections of a report about paths, in their order.",
    "search.report.paths.section": "The sections of a report about paths: tables, panels of figures, grids of images.",
    "search.report.exits.pngs": "The pictures of networks with exits as matplotlib figures.",
    "search.report.halting": """Ponder costs and halting maps of a report: where a network computes much and where little (ACT and SACT).

M. Figurnov et al., "Spatially adaptive computation time for residual networks", CVPR 2017, arXiv 1612.02297:
images beside the units computed at each of their positions; as figures of a page and as PNG pictures.
""",
    "search.promotion.models": """Models of the registry: finding one by name, loading it, predicting with it.

Images are given as an array, as files, or as a split of the model's own data set.
""",
    "search.promotion.history": "Where an alias of the model registry pointed before, and the way back.",
    "search.promotion.gates": """Gates that a point passes before an alias points to it: each is measured again, and its evidence is kept.

A gate passes, fails, or cannot be evaluated (`passed` is None: there is no champion to beat yet, no
other seed was trained). What cannot be evaluated says so and stops nothing.

By the gate `champion` a point replaces what an alias points to only where it is better at the alias's budget.
Both are compared by the validation split of the same images (the test split ranks nothing), with the
figures that their promotions measured again.
""",
    # -- trainables ---------------------------------------------------------------------------------------------------
    "trainables.contracts.method": "The record of one paper, the method: what a trial builds, minimises and may vary.",
    "trainables.contracts.recipe": """The recipe of a training: what configurations have in common, optimisers, phases, batches.""",
    "trainables.serving": "Networks out of checkpoints: to go on with, and prepared as they are served.",
    "trainables.training.training": """One training loop for every method: phases, epochs, steps, curves, checkpoints. Knows no cluster.""",
    "trainables.training.partial": "How far an epoch came where it was interrupted.",
    "trainables.data.errors": "What is wrong with data.",
    "trainables.data.decoding": "Decoding one image file.",
    "trainables.data.image_files": """Image files and folders of them: resizing, class folders, PNG export.

Shape legend: n images, C channels, S pixels along an edge.
""",
    "trainables.execution.fused": """Convolutions for inference: batch norm folded, convolution, ReLU and addition in one pass.

On CPUs they are oneDNN's with weights packed once (`torch.ops.mkldnn`, as TorchInductor calls them);
elsewhere, and in types that oneDNN lacks, the same modules call PyTorch's own.

Shape legend: B images, c channels, h height (= width).
""",
    "trainables.inference.prepare": """Networks prepared for inference.

`prepared` copies a trained network and replaces what it knows by faster modules that compute the
same: convolutions with their batch norms and ReLUs in one pass (`trainables.execution.fused`), and the fast forms that
each family of networks brings. What it does not know stays the module that it was, so it may be called on any network.

Shape legend: B images, c channels, h height (= width).
""",
    "trainables.networks.resnet.fast": """Residual blocks prepared for inference: each convolution with what follows it in one pass.

Shape legend: B images, c channels, h height (= width).
""",
    "trainables.networks.gated.network": """Residual networks whose blocks have gates: which run is decided image by image.

The hard pass under one setting is what is served, and where every call counts (`hard_pass`). Nothing branches, so
rows are images. Where the router reads pooled features (`networks.gated.fast`), their sums are kept from gate
to gate and renewed only where a block ran; a single image on a CPU takes its decisions as numbers, without masks.

Shape legend: B images, S settings, G gates, U units, R rows (distinct activations of a sweep), k chosen rows,
c channels.
""",
    "trainables.networks.halting.network": r"""Adaptive computation time on residual groups: every group stops when its halting scores reach one.

M. Figurnov et al., "Spatially adaptive computation time for residual networks", CVPR 2017, arXiv
1612.02297, sections 3.1 and 3.2; A. Graves, arXiv 1603.08983.

In a group of n units, x_u being the state behind unit u and h_u in [0, 1] its halting score (h_n = 1), with
a halting threshold T = 1 - eps and sums over v = 1 ... u:

.. math:: N = \min\{u : \sum_v h_v \ge T\}, \quad R = 1 - \sum_{v < N} h_v, \quad
          y = \sum_{u < N} h_u x_u + R\, x_N, \quad \rho = N + R

Everything here is told by the *remaining mass* :math:`r_u = 1 - \sum_{v < u} h_v` before unit u, 0 where the group
has stopped: unit u runs where r_u > 0, x_u weighs :math:`r_u - r_{u+1}`, N counts the r_u > 0, R is the last of them.
So the decisions are the r_u of units 2 ... n of every group: 1 = run, as everywhere.

With spatial halting h, r, N, R belong to a position; x stays where it has stopped.

Above T = 1, which the paper does not have, scores are divided by T: ever later, and for T to infinity y = x_n,
the network without halting.

In the hard passes images (`by_images`) and positions (`by_positions`) that have stopped are not computed.

Shape legend: B images, S settings, G groups, n units of a group, h height, w width (1 and 1 without spatial halting),
U units of the contract, D decisions, P = S * B claims (a setting's wish for an image), R rows (distinct activations),
m chosen positions.
""",
    "trainables.networks.columns.network": """Networks of columns with junctions: an image is classified or goes on, as the scores of its router say.

M. McGill, P. Perona, "Deciding how to decide", ICML 2017, arXiv 1703.06217, sections 3 and 4.1.

In the hard pass an image is computed as far as its routers send it (`alone`, `together`, `swept`).

Shape legend: B images, C classes, N columns, E classifiers (exits), D sinks of all junctions, U units,
S settings, R images that reached a column.
""",
    "trainables.networks.multipath.network": """Networks of parallel paths with soft routing between them, and their pruned forms.

D. Tissera et al., "End-to-end data-dependent routing in multi-path neural networks", arXiv 2107.02450. Gates
weigh what the paths hand on; all paths run, and their logits are averaged. Parts: `networks.multipath.routing`,
`networks.multipath.layers`, `networks.multipath.bodies`.

Our extension, off by default: paths whose gates say little are left out (`Pruning`). In the pruned hard pass each path
is computed for the images that keep it, for no others. A *row* is an image with one history of which paths were left
out: settings that agree so far share it. What a path computes depends on the row before the routing layer alone,
so it is computed once for all rows behind it.

Shape legend: B images, S settings, R rows, k rows of one path, m inputs and n outputs of a routing layer, X paths,
D gates, U units, C classes.
""",
    "trainables.networks.multipath.layers": """Layers of parallel paths: X copies with weights of their own, computed as one layer or one by one.

Activations of X paths are either *wide*, one tensor (B, X * c, h, w) or (B, X * c) whose channels are those
of path 1, then those of path 2, ..., or a list of X tensors. A layer holds the weights of all its
paths in one tensor. ``layer(wide)`` is one grouped convolution or batched matrix product; ``layer(x, piece)``
is a single path, `piece` being one of ``layer.pieces()``. Both give the same to rounding. Which is
faster depends on shape, batch and device: `grouped_pays`.

On CPUs a rule decides that `tests/benchmarks/inference/bench_paths.py` gave, so that the same configuration computes
the same in every process. On other devices every shape is tried once, both ways, when it first occurs, and
the answer is kept; results differ by rounding at most.

Shape legend: B images, X paths, c channels of a path, h height (= width).
""",
    "trainables.networks.multipath.bodies": """The bodies of multi-path networks: plain CNNs, VGG-13 and residual networks with X parallel paths.

D. Tissera et al., "End-to-end data-dependent routing in multi-path neural networks", arXiv 2107.02450,
table 1 and sections 6 and 7. A body is a shared trunk and segments: a routing layer and the layers of every
path behind it. Routing attaches at *places*, the names of layers: cross-connections and
cross-stitch behind a layer (and its pool), or at ``input``; cross-prediction in the place of a convolution or
linear layer, and in residual networks as a convolution of its own behind a stack.

Shape legend: X paths.
""",
    "trainables.networks.msdnet.network": """MSDNet: dense layers on several scales at once, with classifiers on the way; the networks' names and measures.

Reference: G. Huang, D. Chen, T. Li, F. Wu, L. van der Maaten, K. Weinberger, "Multi-scale dense
networks for resource efficient image classification", ICLR 2018, arXiv 1703.09844.

Shape legend: B images, c_s channels of scale s; scales are listed from the finest to the coarsest.
""",
    # -- cluster ------------------------------------------------------------------------------------------------------
    "cluster.manifests.inputs": "What manifests are rendered from, and what is checked before: the study, versions, whether a trial fits.",
    "cluster.manifests.kinds": "Every kind of manifest by name, and what renders it.",
}
