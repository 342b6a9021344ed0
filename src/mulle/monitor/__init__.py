"""Windows over the prediction log, drift, data quality, and their report."""
