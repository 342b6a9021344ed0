"""HTTP/1.1: connections, limits, messages. It knows requests and answers, no models."""
