"""The script a data scientist would write: the same rows, the same estimator, nothing around it.

python plain_sklearn.py CUSTOMERS.parquet SIDES.parquet TRAIN.json SCORES.npy
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder


def main() -> None:
    customers, sides, record, out = sys.argv[1:]
    table = pd.read_parquet(customers)
    side = pd.read_parquet(sides)["side"]
    params = json.loads(Path(record).read_text(encoding="utf-8"))["params"]
    params["random_state"] = params.pop("seed")
    columns = [name for name in table.columns if name not in {"customer_id", "churn"}]
    texts = [name for name in columns if not pd.api.types.is_numeric_dtype(table[name])]
    encode = ColumnTransformer([("text", OneHotEncoder(handle_unknown="ignore", sparse_output=False), texts)], remainder="passthrough")
    model = make_pipeline(encode, HistGradientBoostingClassifier(early_stopping=False, **params))
    train, test = table[side == "train"], table[side == "holdout"]
    model.fit(train[columns], train["churn"] == "Yes")
    np.save(out, model.predict_proba(test[columns])[:, 1], allow_pickle=False)


if __name__ == "__main__":
    main()
