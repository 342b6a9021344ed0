"""The data plane: transport, codec, runtime, prediction log, reload."""
