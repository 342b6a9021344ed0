"""What answers, when, and what is kept of it; no protocol in it."""
