"""Files of other programs as sections of text. `worker` and what it imports run in a sandbox, with no SDK to see."""
