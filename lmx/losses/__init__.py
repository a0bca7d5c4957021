"""Losses as pure functions: arrays in, unreduced float32 arrays out. They know no model, batch, mesh or config."""
