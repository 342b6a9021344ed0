"""What crosses a process border: bundle, deployment spec, events, prediction log, golden requests, baseline, rows.

Every format names itself and its version; every reader refuses what it does not know. numpy and msgspec only.
"""
