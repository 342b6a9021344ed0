"""Which customers will leave next month?

Everything here is plain Python: each function can be imported, called and tested on its own. What an operator tunes
without touching code stands in mulle.toml.
"""

import mulle
from mulle import col
from sklearn.ensemble import HistGradientBoostingClassifier

# `positive` is the label that counts as 1; `entity` names who a row is about, so that the split by hash keeps each
# customer on one side for ever.
project = mulle.Project("@PROJECT_NAME@", task="binary", target="churn", positive="Yes", entity="customer_id")

YES_NO = ["Yes", "No"]
INTERNET = [*YES_NO, "No internet service"]
PHONE = [*YES_NO, "No phone service"]


@project.source
def customers() -> mulle.Frame:
    """One row per customer. Your own data is one line to change:

    mulle.read_csv("data/customers.csv")
    mulle.read_sql("SELECT * FROM customers ORDER BY id", "postgresql://app:${env://DB_PASSWORD}@db/shop")
    mulle.read_s3("s3://bucket/customers.parquet")
    """
    return mulle.read_parquet("data/customers.parquet")


@project.expectations
def sound(t: mulle.Expect) -> None:
    """What must hold before anything is learnt: a run stops here otherwise, with counts and examples."""
    t.min_rows(1000)
    t.column("customer_id").unique().not_null().matches(r"C-\d+")
    t.column("tenure").between(0, 120).not_null()
    t.column("monthly_charges").between(0, 1000).not_null()
    t.column("total_charges").between(0, None)  # new customers have none yet: missing is allowed
    t.column("contract").isin(["Month-to-month", "One year", "Two year"])
    t.column("internet_service").isin(["DSL", "Fiber optic", "No"])
    t.column("multiple_lines").isin(PHONE)
    for service in ("online_security", "online_backup", "device_protection", "tech_support", "streaming_tv", "streaming_movies"):
        t.column(service).isin(INTERNET)


@project.features
def features() -> dict[str, mulle.Expr]:
    """What the model sees. Each expression is compiled twice, to the table engine for training and into the served graph,
    so that the two cannot differ."""
    tenure, monthly, total = col("tenure"), col("monthly_charges"), col("total_charges")
    return {
        # who they are
        "female": col("female"),
        "senior_citizen": col("senior_citizen"),
        "partner": col("partner"),
        "dependents": col("dependents"),
        # how long they have been here, and what they pay
        "tenure": tenure,
        "first_year": tenure < 12,
        "monthly_charges": monthly,
        "total_charges": total.fill_null(0),
        "spend_per_month": total.fill_null(0) / (tenure + 1),
        "price_rise": monthly - total / tenure,  # 0 / 0 is missing: the model is told so
        # what they have
        "phone_service": col("phone_service"),
        "multiple_lines": col("multiple_lines").category(),
        "internet_service": col("internet_service").category(),
        "online_security": col("online_security").category(),
        "online_backup": col("online_backup").category(),
        "device_protection": col("device_protection").category(),
        "tech_support": col("tech_support").category(),
        "streaming_tv": col("streaming_tv").category(),
        "streaming_movies": col("streaming_movies").category(),
        # how they are bound, and how they pay
        "contract": col("contract").category(),
        "paperless_billing": col("paperless_billing"),
        "payment_method": col("payment_method").category(),
    }


@project.model(search={"learning_rate": mulle.log_uniform(0.01, 0.3), "max_leaf_nodes": mulle.integer(3, 31)})
def boosted_trees(
    learning_rate: float = 0.05, max_leaf_nodes: int = 6, max_iter: int = 120, l2_regularization: float = 1.0, seed: int = 0
) -> HistGradientBoostingClassifier:
    """Any scikit-learn estimator will do, unfitted; the arguments are what mulle.toml and `mulle search` may set."""
    return HistGradientBoostingClassifier(
        learning_rate=learning_rate,
        max_leaf_nodes=max_leaf_nodes,
        max_iter=max_iter,
        l2_regularization=l2_regularization,
        early_stopping=False,
        random_state=seed,
    )
