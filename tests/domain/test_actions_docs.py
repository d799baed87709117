"""docs/actions.md tells what the code does."""

from services.actions.documents import PAGE, fresh


def test_the_life_cycles_in_the_page_are_those_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count("<!-- generated: ") == page.count("<!-- end -->") == 2
    assert fresh(page) == page
    assert fresh(page.replace("OPEN --> ACCEPTED", "OPEN --> VERIFIED")) == page
