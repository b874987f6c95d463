"""Logging, events, distributed helpers and drawing. Import the submodule that you need."""
