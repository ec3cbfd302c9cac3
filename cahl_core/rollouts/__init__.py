"""Rollouts from OpenAI-compatible servers: client, pool, adapters, asynchronous collection, server."""
