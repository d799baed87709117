"""What callers of a read model hear while it cannot be asked."""

import asyncpg
import pytest

from services.foundation.errors import UnavailableError
from services.foundation.projection import answerable


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (asyncpg.UndefinedTableError('relation "actions.action" does not exist'), "the read model is not built yet"),
        (asyncpg.InvalidSchemaNameError("no such schema"), "the read model is not built yet"),
        (ConnectionRefusedError(111, "refused"), "ConnectionRefusedError"),
    ],
)
def test_what_comes_back_by_itself_is_waited_for(error: Exception, said: str) -> None:
    with pytest.raises(UnavailableError, match=said), answerable():
        raise error


def test_a_fault_of_ours_stays_one() -> None:
    with pytest.raises(asyncpg.PostgresSyntaxError), answerable():
        raise asyncpg.PostgresSyntaxError("at or near")
