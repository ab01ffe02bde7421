"""Programs run apart: bounded in time, memory, processes and output, without network, and with few files to see.

`Sandbox.run` starts a program in namespaces of its own (`unshare` of util-linux), with a file system in memory into
which what it may see is bound, and under the kernel's Landlock, as far as the machine has them; `isolation()` says what
is missing. Inside, the program has an empty folder of its own that vanishes with it, reads what `Sandbox.read` names
and the system's programs, and writes what `Sandbox.write` names.

It shares the kernel: this keeps programs that a model wrote from doing harm, and is no virtual machine.
"""

from m1tools.sandbox.bounds import Bounds
from m1tools.sandbox.isolation import Isolation, isolation
from m1tools.sandbox.process import Command, Outcome, run_bounded
from m1tools.sandbox.sandbox import Sandbox, clean_environment

__all__ = ["Bounds", "Command", "Isolation", "Outcome", "Sandbox", "clean_environment", "isolation", "run_bounded"]
