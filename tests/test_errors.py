import re

import pytest

from dmt.errors import OneLineParser, UserInputError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--worker", "2"], "--worker: no such option; did you mean --workers?"),
        (["--worker=2"], "--worker: no such option; did you mean --workers?"),
        (["--outptu", "x"], "--outptu: no such option; did you mean --output?"),
        (["--zzz"], "--zzz: no such option; see dmt verb --help"),
        (["--workers", "2"], "the following arguments are required: --output; see dmt verb --help"),
        (["--output", "x", "--workers", "two"], "argument --workers: invalid int value: 'two'; see dmt verb --help"),
    ],
)
def test_errors_of_options_are_one_line_with_the_nearest_name(arguments: list[str], message: str) -> None:
    parser = OneLineParser(prog="dmt verb", description="Does it.")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--output", required=True)
    with pytest.raises(UserInputError, match=f"^{re.escape(message)}$"):
        parser.parse_args(arguments)
