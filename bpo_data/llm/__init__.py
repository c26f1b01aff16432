"""Requests to language models: asked once, kept for good, each with a state of its own."""
