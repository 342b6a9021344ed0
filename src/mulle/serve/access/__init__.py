"""Who may ask: API keys and rate limits. Knows nothing of HTTP: headers come in as pairs, refusals go out as errors."""
