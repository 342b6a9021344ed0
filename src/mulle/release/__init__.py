"""Pure deciders: gates first; traffic, rollout and bandit come later."""
