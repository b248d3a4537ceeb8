"""How many files a process may have open: a map of one in memory counts as one."""

import resource

from dmt.errors import UserInputError

_OTHERS = 200
"""Files beside them: libraries, pipes, sockets."""


def allow_open_files(number: int) -> None:
    """Raise the process's own limit, often 1,024, as far as so many files need it.

    Raises:
        UserInputError: the system does not allow it.
    """
    wanted = number + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise UserInputError(
            f"{number:,} files are to be open at once, and the system allows {hard:,}; raise that to {wanted:,} "
            "(ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
