"""Pure numerics: metrics, resampling, two-sample tests, multiplicity.

numpy and scipy.special only; no IO, no clock, no randomness of its own.
"""
