"""Benchmarks of models as agents: `m1agent bench`.

`bfcl` asks a model for the function calls of the Berkeley Function Calling Leaderboard and compares them by its
published rules; `tasks` lets it work with real MCP servers and looks at the state that is left behind.
"""
