"""A repository's own configuration can name programs that git runs. Here none of them is run.

What is known to name one is overridden; what belongs to a section that is known to name none is let be; a repository
that sets anything else is refused, by the name of what it sets. So a key that a later git invents is no way in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

OVERRIDES = {
    "core.fsmonitor": "false",
    "core.hookspath": "/dev/null",
    "core.sshcommand": "false",
    "core.gitproxy": "",
    "core.askpass": "",
    "core.editor": "false",
    "core.pager": "cat",
    "core.alternaterefscommand": "",
    "core.attributesfile": "/dev/null",
    "sequence.editor": "false",
    "diff.external": "",
    "diff.ignoresubmodules": "all",
    "interactive.difffilter": "",
    "credential.helper": "",
    "gpg.program": "false",
    "gpg.ssh.defaultkeycommand": "",
    "commit.gpgsign": "false",
    "commit.template": "",
    "log.showsignature": "false",
    "blame.ignorerevsfile": "",
    "uploadpack.packobjectshook": "",
    "protocol.allow": "never",
    "submodule.recurse": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
}
NAMED = (  # A driver, a filter or a format of any name: what to set it to.
    (re.compile(r"filter\..*\.(clean|smudge|process)", re.DOTALL), ""),
    (re.compile(r"filter\..*\.required", re.DOTALL), "false"),
    (re.compile(r"diff\..*\.(textconv|command)", re.DOTALL), ""),
    (re.compile(r"merge\..*\.driver", re.DOTALL), "false"),
    (re.compile(r"gpg\..*\.program", re.DOTALL), "false"),
    (re.compile(r"credential\..*\.helper", re.DOTALL), ""),
)
HARMLESS_CORE = frozenset(
    """repositoryformatversion filemode bare logallrefupdates ignorecase precomposeunicode symlinks autocrlf eol
    safecrlf quotepath worktree sparsecheckout sparsecheckoutcone protecthfs protectntfs compression
    loosecompression abbrev whitespace trustctime checkstat untrackedcache splitindex longpaths fscache
    preloadindex multipackindex commitgraph excludesfile notesref commentchar commentstring sharedrepository
    packedgitlimit packedgitwindowsize bigfilethreshold deltabasecachelimit warnambiguousrefs createobject
    usereplacerefs checkroundtripencoding""".split()
)
# Remotes, URLs and credentials are harmless because no transport is allowed; submodules because none is entered.
HARMLESS = frozenset(
    """advice alias apply author blame branch color column commit committer clone extensions feature fetch format github
    gitflow gitlab grep gui help http https i18n include includeif index init lfs log maintenance gc notes pack pager
    pull push rebase receive remote repack rerere stash status submodule svn svn-remote tag transfer url user
    versionsort worktree""".split()
)
HARMLESS_MORE = re.compile(
    r"diff\.(algorithm|colormoved.*|context|indentheuristic|interhunkcontext|mnemonicprefix|noprefix|orderfile|relative"
    r"|renamelimit|renames|submodule|wserrorhighlight|.*\.(binary|xfuncname|funcname|wordregex|cachetextconv|algorithm))"
    r"|merge\.(ff|conflictstyle|renames|renamelimit|stat|log|autostash|.*\.(name|recursive))"
    r"|credential\.(usehttppath|username|.*\.(usehttppath|username|provider))|gpg\.format",
    re.DOTALL,
)


def overrides(names: Iterable[str]) -> dict[str, str]:
    """What to set so that a repository that sets `names` runs nothing."""
    return OVERRIDES | {name: value for name in names for pattern, value in NAMED if pattern.fullmatch(_folded(name))}


def unknown(names: Iterable[str]) -> Iterator[str]:
    """Those of the names that nobody here can vouch for."""
    for name in names:
        folded = _folded(name)
        if folded in OVERRIDES or any(pattern.fullmatch(folded) for pattern, _ in NAMED):
            continue
        section, _, key = folded.partition(".")
        if section == "core" and key in HARMLESS_CORE:
            continue
        if section not in HARMLESS and not HARMLESS_MORE.fullmatch(folded):
            yield name


def environment(values: dict[str, str]) -> dict[str, str]:
    """Settings as git takes them from its environment, where no character in a name can be misread."""
    pairs = {f"GIT_CONFIG_KEY_{index}": name for index, name in enumerate(values)}
    pairs |= {f"GIT_CONFIG_VALUE_{index}": value for index, value in enumerate(values.values())}
    return {"GIT_CONFIG_COUNT": str(len(values)), **pairs}


def _folded(name: str) -> str:
    """Sections and keys are the same in capitals; what stands between them is not."""
    first, _, rest = name.partition(".")
    middle, dot, last = rest.rpartition(".")
    return f"{first.lower()}.{middle}{dot}{last.lower()}"
