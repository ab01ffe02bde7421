"""Tasks on real MCP servers, judged by the state they leave behind: files, commits, a graph, an answer.

The tasks are data, in the TOML files beside this one: what stands there before, what is asked, and what must differ
afterwards. Whatever a task does not name must be as it was. Each also holds calls that do it, and calls that a careless
solver would make, with which tests prove that its check tells one from the other.
"""
