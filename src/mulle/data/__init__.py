"""Sources, dataset versions, expectations, splits, and expressions compiled to the table engine."""
