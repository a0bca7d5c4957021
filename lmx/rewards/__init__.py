"""Rewards of responses: rules that verify an answer exactly."""
