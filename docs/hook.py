"""Hooks of mkdocs: pages made of sections of README.md and of notebooks, and links to files outside docs/."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent
FROM_README = {
    "index.md": ["sagan", "Results", "More"],
    "quickstart.md": ["Quick start", "Attention", "Python"],
    "own-images.md": ["Train on your own images"],
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages made of README.md, with links relative to docs/, and those of the notebooks with their pictures."""
    text = re.sub(r"\]\((?!https?:|#|docs/)", "](../", (ROOT / "README.md").read_text()).replace("](docs/", "](")
    sections = {each.partition("\n")[0]: each for each in re.split(r"^##? ", text, flags=re.MULTILINE)}
    for name, titles in FROM_README.items():
        content = "# " + "## ".join(sections[title] for title in titles)
        files.append(File.generated(config, name, content=content))
    for path in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        names = {"unique_key": path.stem, "output_files_dir": f"{path.stem}_files"}
        body, found = MarkdownExporter().from_filename(str(path), resources=names)
        body += f"\n[Download this notebook]({path.name}){{download}}\n"
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=body))
        for name, picture in found["outputs"].items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to notebooks to their pages. Replace each link to an existing file outside docs/ by its text and path.

    The path is left out if the text has it.
    """
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def replaced(link: re.Match[str]) -> str:
        path = (folder / link[2]).resolve()
        if not path.exists() or path.is_relative_to(ROOT / "docs"):
            return link[0]
        name = path.relative_to(ROOT).as_posix()
        return link[1] if name in link[1] else f"{link[1]} (`{name}`)"

    markdown = re.sub(r"(\]\(\S+)\.ipynb\)(?!\{)", r"\1.md)", markdown)
    return re.sub(r"\[([^]]+)\]\(([^)#\s]+)\)", replaced, markdown)
