"""How requests and answers are spelt: `/predict`, the Open Inference Protocol, MLflow's forms, OpenAPI."""
