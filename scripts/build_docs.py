"""Builds the site of the documents in build/site (``make docs``). Fails if a link or an anchor leads nowhere.

On GitHub the pages are read where they stand: in docs/ and in the root of the repository. zensical wants all pages in one
folder, so they are copied to build/pages, and links between the two are set right on the way.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ROOT / "build" / "pages"
OF_THE_ROOT = {
    ROOT / "README.md": "index.md",
    ROOT / "CONTRIBUTING.md": "contributing.md",
    ROOT / "SECURITY.md": "security-policy.md",
    ROOT / "CHANGELOG.md": "changelog.md",
}
"""Pages that are not in docs/, and their names in the site."""

CODE = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[([^\[\]]*)\]\(([^()\s]+)\)")


SCRIPT = '\n<script src="{up}javascripts/mermaid.tiny.js"></script>\n'
"""What a page with a diagram needs. Without it the theme asks another host."""


class LinkError(Exception):
    """A link of a page leads to nothing in the repository."""


def pages() -> dict[Path, Path]:
    """Each page of the repository, and the page of the site that is made of it, relative to the site."""
    in_docs = {page: page.relative_to(DOCS) for page in sorted(DOCS.rglob("*.md"))}
    return in_docs | {page: Path(name) for page, name in OF_THE_ROOT.items()}


def up(place: Path) -> str:
    """The way from a page of the site to its root."""
    return "../" * (len(place.parts) - 1)


def relinked(text: str, page: Path, known: dict[Path, Path]) -> str:
    """The text of a page with the links that it needs in the site.

    A link to a file of the repository leads to a copy in files/. A link to a folder becomes plain text, since a site shows no
    folders. Raises LinkError.
    """
    root = up(known[page])

    def link(found: re.Match[str]) -> str:
        words, target = found.groups()
        path, hash_, anchor = target.partition("#")
        if not path or re.match(r"\w+:", target):
            return found[0]
        file = (page.parent / path).resolve()
        if file in known:
            return f"[{words}]({root}{known[file].as_posix()}{hash_}{anchor})"
        if file.is_relative_to(DOCS) and file.is_file():
            return f"[{words}]({root}{file.relative_to(DOCS).as_posix()})"
        if file.is_relative_to(ROOT) and file.is_dir():
            return words
        if file.is_relative_to(ROOT) and file.is_file():
            copy = PAGES / "files" / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
            return f"[{words}]({root}files/{file.relative_to(ROOT).as_posix()})"
        raise LinkError(f"{page.relative_to(ROOT)}: there is no file or folder {target}")

    return "".join(part if CODE.fullmatch(part) else LINK.sub(link, part) for part in CODE.split(text))


def lay_out() -> None:
    """Write build/pages."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(DOCS, PAGES, ignore=shutil.ignore_patterns("*.jsonl"))
    known = pages()
    for page, place in known.items():
        text = relinked(page.read_text(encoding="utf-8"), page, known)
        if "```mermaid" in text:
            text += SCRIPT.format(up=up(place))
        (PAGES / place).write_text(text, encoding="utf-8")


def main() -> int:
    try:
        lay_out()
    except LinkError as error:
        print(error, file=sys.stderr)
        return 1
    return subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=ROOT, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
