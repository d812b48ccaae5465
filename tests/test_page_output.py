"""Lines of a page stand for lines of an output, in their order, and for no others."""

from __future__ import annotations

import pytest
from page_output import Step, check_shown, steps

SAID = """2026-11-22 INFO cli.py -- \x1b[36mNext steps\x1b[39m
CartPole running |  3 nodes | 11.8 kB/s
end
"""


@pytest.mark.parametrize(
    "shown",
    [
        ["Next steps"],
        ["CartPole … | 2 nodes | 9.35 kB/s", "end"],
        ["Next steps", "CartPole running | 2 nodes | …"],
        [],
    ],
)
def test_numbers_and_what_is_left_out_may_differ(shown: list[str]) -> None:
    check_shown(shown, SAID)


@pytest.mark.parametrize(
    "shown",
    [["Next step."], ["end", "Next steps"], ["Pong … | 2 nodes"], ["CartPole … end"],
     ["running | two nodes"]],
)  # fmt: skip
def test_what_was_not_printed_or_not_in_that_order_is_found(shown: list[str]) -> None:
    with pytest.raises(AssertionError, match="the page shows"):
        check_shown(shown, SAID)


def test_a_step_is_its_commands_and_what_is_shown_of_them() -> None:
    page = """
<!-- run by tests/test_x.py -->
```sh
one --two \\
    three  # why
four
```

Among other lines:

```text
shown
```

<!-- run by tests/test_x.py -->
```sh
five
```

```sh
not this
```
"""
    assert steps(page) == [Step(["one --two      three", "four"], ["shown"]), Step(["five"], [])]
