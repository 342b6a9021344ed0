"""What is to be predicted, from what, and how. It runs as it is, on a tiny sample: change it function by function."""

import mulle
from mulle import col
from sklearn.linear_model import LogisticRegression

# task: "binary", "multiclass" or "regression". target: the column to predict.
# positive: for "binary", the label that counts as 1. entity: the column that names who a row is about.
project = mulle.Project("@PROJECT_NAME@", task="binary", target="bought", positive="yes", entity="visitor")


@project.source
def rows() -> mulle.Frame:
    """Where the table comes from. One line to change: read_csv, read_parquet, read_sql, read_s3, or any function that
    returns a polars, pandas or Arrow table."""
    return mulle.read_csv("data/sample.csv")


@project.expectations
def sound(t: mulle.Expect) -> None:
    """What must hold before anything is learnt."""
    t.column("visitor").unique().not_null()
    t.column("minutes").between(0, 600)
    t.column("channel").isin(["search", "mail", "friend"])


@project.features
def features() -> dict[str, mulle.Expr]:
    """What the model sees: expressions over the columns, the same in training and in the served graph."""
    return {
        "minutes": col("minutes"),
        "pages_per_minute": col("pages") / (col("minutes") + 1),
        "channel": col("channel").category(),
    }


@project.model
def model(C: float = 1.0, seed: int = 0) -> LogisticRegression:  # noqa: N803 - scikit-learn's own name
    """Any scikit-learn estimator, unfitted."""
    return LogisticRegression(C=C, max_iter=1000, random_state=seed)
