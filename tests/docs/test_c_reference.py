"""docs/reference/c-reference.md: what the headers say, and all of it."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.support.c_library import INCLUDE
from tests.support.folders import REPOSITORY

PAGE = REPOSITORY / "docs/reference/c-reference.md"


def test_the_page_is_made_of_the_headers() -> None:
    checked = subprocess.run(
        [sys.executable, REPOSITORY / "man/c_reference.py", "--check"], capture_output=True, text=True, check=False
    )

    assert (checked.returncode, checked.stderr) == (0, "")


def test_every_name_of_the_c_header_has_a_place_on_the_page() -> None:
    header = (INCLUDE / "shmserve.h").read_text()
    functions = set(re.findall(r"^[\w ].*?\b\*?(shmserve_\w+)\(", header, re.MULTILINE))
    types = set(re.findall(r"^(?:\} |typedef .* |enum )(shmserve_\w+)(?:;| \{)", header, re.MULTILINE))
    constants = set(re.findall(r"^#define (SHMSERVE_[A-Z_]+) ", header, re.MULTILINE))
    headings = set(re.findall(r"^### (\w+)$", PAGE.read_text(), re.MULTILINE))

    assert len(functions) > 25 and len(types) > 8 and "SHMSERVE_ABI" in constants
    assert functions | types | constants <= headings
    assert set(re.findall(r"^    (SHMSERVE_\w+)", header, re.MULTILINE)) <= set(
        re.findall(r"^\| `(SHMSERVE_\w+)", PAGE.read_text(), re.MULTILINE)
    )


def test_every_class_and_struct_of_the_cpp_headers_has_a_heading() -> None:
    headings = set(re.findall(r"^### (\w+)", PAGE.read_text(), re.MULTILINE))
    for path in INCLUDE.glob("*.hpp"):
        public = re.sub(r"namespace detail \{.*?\} // namespace detail", "", path.read_text(), flags=re.DOTALL)
        named = re.findall(
            r"^(?:template <.*?> )?(?:class|struct|enum class)(?: \[\[nodiscard\]\])? (\w+)", public, re.MULTILINE
        )

        assert set(named) <= headings, path


def test_every_function_has_a_comment_that_doxygen_reads() -> None:
    header = (INCLUDE / "shmserve.h").read_text()
    functions = re.findall(r"(\*/)?\n(?:[\w ]+\*?)(?<=[ *])(shmserve_\w+)\(", header)

    assert [name for comment, name in functions if not comment] == []
    assert not re.findall(r"^/\* (?!-)", header, re.MULTILINE)
