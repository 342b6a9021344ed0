"""Preprocessing, fitting, and tracking."""
