"""Fails when a package that Souk is built from has a licence that is not on the list below.

Reads the output of `cargo metadata` on standard input, and nothing else: no network, no packages to install.
"""

import json
import re
import sys

# Licences that let us ship a program made of the package, with its notice. Each is an SPDX identifier.
ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
}


class NotAnExpression(Exception):
    pass


def is_allowed(expression):
    """Whether an SPDX expression can be satisfied with allowed licences only. `A/B` is an old way to write `A OR B`."""
    words = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    position = 0

    def next_word():
        return words[position] if position < len(words) else None

    def take():
        nonlocal position
        word = next_word()
        if word is None:
            raise NotAnExpression(expression)
        position += 1
        return word

    def one():
        word = take()
        if word == "(":
            allowed = either()
            if take() != ")":
                raise NotAnExpression(expression)
            return allowed
        if word in (")", "AND", "OR", "WITH"):
            raise NotAnExpression(expression)
        if next_word() == "WITH":
            take()
            word = f"{word} WITH {take()}"
        return word in ALLOWED

    def both():
        allowed = one()
        while next_word() == "AND":
            take()
            allowed = one() and allowed
        return allowed

    def either():
        allowed = both()
        while next_word() == "OR":
            take()
            allowed = both() or allowed
        return allowed

    allowed = either()
    if next_word() is not None:
        raise NotAnExpression(expression)
    return allowed


def check_itself():
    for expression, expected in [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("MIT/Apache-2.0", True),
        ("GPL-2.0-only OR MIT", True),
        ("GPL-2.0-only AND MIT", False),
        ("(MIT OR GPL-2.0-only) AND Unicode-3.0", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("Apache-2.0 WITH Something-else", False),
    ]:
        assert is_allowed(expression) == expected, expression
    for broken in ["", "MIT OR", "(MIT", "MIT MIT", "OR"]:
        try:
            is_allowed(broken)
        except NotAnExpression:
            continue
        raise AssertionError(f"{broken!r} is taken for an expression")


def main():
    check_itself()
    packages = json.load(sys.stdin)["packages"]
    wrong = []
    for package in packages:
        licence = package["license"]
        try:
            fine = licence is not None and is_allowed(licence)
        except NotAnExpression:
            fine = False
        if not fine:
            wrong.append(f"{package['name']} {package['version']}: {licence or 'says no licence'}")
    if not packages or wrong:
        print("licences that are not on the list of .ci/licences.py:", *wrong, sep="\n  ", file=sys.stderr)
        return 1
    print(f"the licences of {len(packages)} packages are on the list")
    return 0


if __name__ == "__main__":
    sys.exit(main())
