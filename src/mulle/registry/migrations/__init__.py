"""How the state database came to look as it does; run by `state_sqlite.migrate`, never imported."""
