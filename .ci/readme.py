"""Prints the shell blocks below one heading of a Markdown file: `readme.py README.md "Run"`.

So the commands that a newcomer is told to type are the ones that are tested.
"""

import re
import sys


def blocks(text, heading):
    found, below, block, wanted = [], False, None, False
    for line in text.splitlines():
        if block is not None:
            if line != "```":
                block.append(line)
                continue
            if wanted:
                found.append("\n".join(block))
            block = None
        elif line.startswith("```"):
            block, wanted = [], below and line == "```sh"
        elif match := re.fullmatch(r"##? (.+)", line):
            below = match[1].strip() == heading
    return found


def main():
    path, heading = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        found = blocks(file.read(), heading)
    if not found:
        print(f"{path} has no ```sh block below {heading!r}", file=sys.stderr)
        return 1
    print("\n".join(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
