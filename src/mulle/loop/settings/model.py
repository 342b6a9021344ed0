"""The settings of a project as typed values: what `mulle.toml` may say, with defaults, ranges and one line each.

Every table forbids unknown keys. The descriptions become the JSON Schema which editors read (`settings/schema.py`).
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from mulle.loop.settings.base import Address, Duration, PublicKey, Scalar, Schedule, SecretReference, Share, Table, TrueIsDefaults
from mulle.loop.settings.serving import ServingTable


class ProjectTable(Table):
    """Who the project is."""

    name: str = Field(min_length=1, max_length=63, description="The project's name; also the registered model's.")
    code: str = Field(
        "project:project", pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*$", description="Module and variable of the project object."
    )


class DataTable(Table):
    """The dataset the source is cut into."""

    dataset: str | None = Field(default=None, min_length=1, description="Name of the dataset; the project's name by default.")


class SplitTable(Table):
    """How rows are kept back for evaluation."""

    by: Literal["hash", "time"] = Field(
        default="hash", description="`hash`: each entity stays on one side for ever; `time`: the latest rows are held out."
    )
    holdout_share: float = Field(default=0.2, gt=0.0, lt=0.9, description="Share of the rows that are kept back.")
    salt: str = Field(default="mulle", description="Changes which entities are held out, when the split is by hash.")


class TrainTable(Table):
    """What is fitted."""

    model: str | None = Field(default=None, description="Which function under @project.model; the only one by default.")
    params: dict[str, Scalar | None] = Field(default_factory=dict, description="Arguments for that function.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of everything random.")
    k_folds: int = Field(default=5, ge=0, le=50, description="Folds of the cross-validation; 0 leaves it out.")


class ExportTable(Table):
    """How far the served graph may differ from the fitted model."""

    max_disagreeing_share: Share = Field(default=0.005, description="Share of rows whose score may differ by more than 1e-4.")
    max_metric_gap: float = Field(default=1e-3, gt=0.0, description="How far any gate metric of the graph may be from the Python model's.")
    int8: bool = Field(default=True, description="Whether an INT8 variant is tried where it applies.")


class EvaluateTable(Table):
    """What is measured on the graph that would be served."""

    slices: tuple[str, ...] = Field(default=(), description="Columns whose values cut the holdout into slices.")
    bootstrap: int = Field(default=1000, ge=0, le=100_000, description="Bootstrap resamples behind the intervals.")
    threshold: float = Field(default=0.5, gt=0.0, lt=1.0, description="Probability from which the positive class is answered.")
    importance_repeats: int = Field(default=5, ge=0, le=100, description="Permutations per column; 0 leaves the importance out.")
    latency_samples: int = Field(default=2000, ge=100, le=1_000_000, description="Requests behind p50 and p99.")


class ChampionMargin(Table):
    """How a challenger is compared with the champion on the same rows."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1.0, description="Confidence of the one-sided interval.")
    margin: float | None = Field(default=None, ge=0.0, description="Loss that is tolerated; by default what the holdout can resolve.")


class MetricGate(Table):
    """Bounds of one metric."""

    min: float | None = Field(default=None, description="Smallest value that passes.")
    max: float | None = Field(default=None, description="Largest value that passes.")
    judge: Literal["point", "interval"] = Field(
        default="point", description="`interval`: the whole bootstrap interval must keep the bounds."
    )
    no_worse_than_champion: Annotated[ChampionMargin | None, TrueIsDefaults] = Field(
        None, description="Compare with the champion on the same rows.", json_schema_extra={"$comment": "true stands for the defaults"}
    )


class FairnessGate(Table):
    """Largest difference between slices."""

    slice_by: tuple[str, ...] = Field(min_length=1, description="Columns whose values are compared.")
    metric: str | None = Field(default=None, description="The metric that is compared; accuracy, or for regression rmse.")
    max_gap: float = Field(default=0.1, ge=0.0, description="Largest difference between two slices.")
    min_rows: int = Field(default=30, ge=1, description="Rows a slice needs before it is judged.")
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0, description="Confidence of the interval of a difference.")
    small: Literal["inconclusive", "ignore"] = Field(default="inconclusive", description="What slices below `min_rows` make of the gate.")


class LatencyGate(Table):
    """Time of one single-row answer on this host."""

    p50_max: float | None = Field(default=None, gt=0.0, description="Milliseconds.")
    p99_max: float | None = Field(default=None, gt=0.0, description="Milliseconds.")


class SizeGate(Table):
    """Size of the graph."""

    max: float = Field(gt=0.0, description="Mebibytes.")


class GatesTable(Table):
    """The offline checks before registration; a gate that is left out is not checked."""

    on_inconclusive: Literal["hold", "fail"] = Field(
        default="hold", description="What a gate that cannot tell means: `hold` leaves it to a person, `fail` counts it as failed."
    )
    roc_auc: MetricGate | None = None
    pr_auc: MetricGate | None = None
    accuracy: MetricGate | None = None
    balanced_accuracy: MetricGate | None = None
    precision: MetricGate | None = None
    recall: MetricGate | None = None
    f1: MetricGate | None = None
    positive_precision: MetricGate | None = None
    positive_recall: MetricGate | None = None
    positive_f1: MetricGate | None = None
    log_loss: MetricGate | None = None
    brier: MetricGate | None = None
    calibration_error: MetricGate | None = None
    rmse: MetricGate | None = None
    mae: MetricGate | None = None
    mape: MetricGate | None = None
    r2: MetricGate | None = None
    fairness: FairnessGate | None = None
    latency_ms: LatencyGate | None = None
    size_mb: SizeGate | None = None


class ErrorRateBound(Table):
    """Bound on the share of failed answers."""

    max_increase: float = Field(ge=0.0, le=1.0, description="How much larger the challenger's share may be, in points.")


class LatencyBound(Table):
    """Bound on a quantile of the answer time."""

    max_ratio: float = Field(gt=1.0, description="How many times the champion's quantile the challenger's may be.")
    at: float = Field(default=0.99, gt=0.0, lt=1.0, description="Which quantile.")


class MetricDrop(Table):
    """Bound on the loss of a metric."""

    metric: str = Field(description="The metric, as gates name it.")
    max_drop: float = Field(ge=0.0, description="Loss that is tolerated, in the metric's unit.")


class AnalysisTable(Table):
    """What a rollout watches."""

    alpha: float = Field(default=0.05, gt=0.0, lt=0.5, description="Chance that a rollout is stopped without a reason.")
    error_rate: ErrorRateBound | None = None
    latency: LatencyBound | None = None
    quality: MetricDrop | None = None
    on_metric_outage: Literal["hold", "rollback", "continue"] = Field(
        default="hold", description="What happens while nothing can be measured."
    )


class RolloutTable(Table):
    """How traffic moves to a challenger. Checked, and kept for the version that acts on it."""

    strategy: Literal["canary", "blue_green", "shadow", "ab", "bandit"] = Field(
        default="canary", description="How a challenger meets traffic."
    )
    weights: tuple[Annotated[int, Field(ge=0, le=100)], ...] = Field(
        default=(5, 25, 50, 100), description="The challenger's share of traffic at each step, in per cent."
    )
    analysis: AnalysisTable = AnalysisTable()


class MonitorTable(Table):
    """The comparison of what is served with what was learnt."""

    window: Duration = Field(default="1h", description="Length of the current window.")
    min_rows: int = Field(default=200, ge=1, description="Rows a window needs before it is judged.")
    alpha: float = Field(default=0.05, gt=0.0, lt=0.5, description="Chance of any false alarm in one check.")
    false_alarms_per_year: float = Field(default=4, gt=0.0, description="False alarms a year of repeated checks may raise.")
    performance: MetricDrop | None = Field(default=None, description="Loss of a metric on labelled predictions that raises an alarm.")


class RetrainTable(Table):
    """When the wheel turns again. Checked, and kept for the version that acts on it."""

    on: tuple[Literal["schedule", "drift", "performance", "data", "manual"], ...] = Field(
        default=("manual",), description="What starts a run."
    )
    schedule: Schedule | None = Field(default=None, description="When, as five cron fields.")
    cooldown: Duration = Field(default="6h", description="Least time between two runs that were not started by hand.")


class RetentionTable(Table):
    """What `mulle gc` keeps beside everything a version, a champion or the last run refers to."""

    keep_runs: int = Field(default=20, ge=1, description="Newest runs whose results stay in the cache.")
    keep_days: int = Field(default=30, ge=0, description="Runs younger than this stay too.")
    logs_days: int = Field(default=90, ge=1, description="Prediction logs younger than this stay.")


class EnvironmentTable(Table):
    """Which backends one environment uses. Without addresses: SQLite and files under `.mulle/`."""

    tracking: Address | None = Field(default=None, description="MLflow's address: https://…, sqlite:///…, or env://NAME.")
    state: Address | None = Field(default=None, description="The event log's address: sqlite:///…, postgresql+psycopg://…, or env://NAME.")
    artifacts: Address | None = Field(default=None, description="Where artefacts lie: a folder, s3://…, or env://NAME.")
    secrets: Annotated[Address, Field(pattern=r"^(env|file|vault)://")] | None = Field(
        default=None, description="Where secrets are looked up."
    )
    engine: Literal["local", "prefect", "airflow", "kubeflow"] = Field(default="local", description="What runs the stages.")
    trust: tuple[PublicKey, ...] = Field(default=(), description="Public keys whose signatures are accepted.")
    api_key: SecretReference | None = Field(
        default=None, description="API keys requests must carry, by reference: a document of `mulle keys`, or one key as text."
    )


class Document(Table):
    """All of `mulle.toml`."""

    model_config = ConfigDict(defer_build=True)

    project: ProjectTable
    data: DataTable = DataTable()
    split: SplitTable = SplitTable()
    train: TrainTable = TrainTable()
    export: ExportTable = ExportTable()
    evaluate: EvaluateTable = EvaluateTable()
    gates: GatesTable = GatesTable()
    serving: ServingTable = ServingTable()
    rollout: RolloutTable = RolloutTable()
    monitor: MonitorTable = MonitorTable()
    retrain: RetrainTable = RetrainTable()
    retention: RetentionTable = RetentionTable()
    env: dict[str, EnvironmentTable] = Field(default_factory=dict, description="Environments by name.")


class Settings(Document):
    """All of `mulle.toml`, seen from one environment.

    Attributes:
        project_dir: The project's folder, absolute.
        environment: The chosen environment's name.
    """

    model_config = ConfigDict(defer_build=False)

    project_dir: Path
    environment: str

    @property
    def backends(self) -> EnvironmentTable:
        """The chosen environment's table; the defaults when the file has none for `local`."""
        return self.env.get(self.environment, EnvironmentTable())

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        return self.data.dataset or self.project.name

    @property
    def deployment(self) -> str:
        """The deployment's name."""
        return self.serving.deployment or self.project.name
