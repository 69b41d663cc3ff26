"""Write docs/architecture.svg: the folders of utils/ and which of them imports which, from the code's own imports.

    python docs/make_architecture.py

An arrow that another way already implies is not drawn (the transitive reduction); what a folder holds is the first
sentence of its docstring.
"""
import ast
import html
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "architecture.svg"
ITSELF = "utils"  # the modules that lie in utils/ itself
WIDTH, BOX, HEIGHT, GAP, MARGIN = 860, 300, 76, 34, 10  # px
LETTERS = 46  # of a line in a box


def folder_of(path):
    """The folder of utils/ that a module lies in."""
    below = path.relative_to(ROOT / "utils").parts
    return below[0] if len(below) > 1 else ITSELF


def imported(path):
    """The folders of utils/ that a module imports from, wherever in it, its own left out."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            first, *rest = name.split(".")
            if first == "utils":
                found.add(rest[0] if rest and (ROOT / "utils" / rest[0]).is_dir() else ITSELF)
    return found - {folder_of(path)}


def folders():
    """{folder: the folders that its modules import from}."""
    found = {}
    for path in sorted((ROOT / "utils").rglob("*.py")):
        found.setdefault(folder_of(path), set()).update(imported(path))
    return found


def layers(graph):
    """{folder: the row it stands in, 0 the lowest}: as high as those that import it let it.

    Raises ValueError for arrows that run in a circle.
    """
    found = {}

    def depth(folder, above):
        if folder in above:
            raise ValueError("imports run in a circle: " + " → ".join([*above[above.index(folder):], folder]))
        if folder not in found:
            found[folder] = 1 + max((depth(other, [*above, folder]) for other in sorted(graph[folder])), default=-1)
        return found[folder]

    for folder in sorted(graph):
        depth(folder, [])
    for folder in sorted(graph, key=found.get, reverse=True):
        users = [found[other] for other in graph if folder in graph[other]]
        found[folder] = min(users) - 1 if users else found[folder]
    return found


def drawn(graph):
    """The arrows (folder, imported folder) that no longer way implies."""
    def below(folder):
        return graph[folder].union(*(below(other) for other in graph[folder]))

    return sorted((folder, other) for folder in graph for other in graph[folder]
                  if not any(other in below(way) for way in graph[folder] - {other}))


def says(folder):
    """The first sentence of a folder's docstring, its line breaks as they are."""
    path = ROOT / "utils" / ("" if folder == ITSELF else folder) / "__init__.py"
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split(".\n")[0]


def lines_of(text):
    """Text in lines of at most LETTERS."""
    found = [""]
    for word in text.split():
        if len(found[-1]) + len(word) >= LETTERS:
            found.append("")
        found[-1] = f"{found[-1]} {word}".strip()
    return found


def picture():
    """The whole picture as SVG: what imports stands above what is imported."""
    graph = folders()
    level = layers(graph)
    top = max(level.values())
    rows = [[folder for folder in sorted(graph) if level[folder] == number] for number in range(top, -1, -1)]
    place = {}
    for row, names in enumerate(rows):
        left = (WIDTH - len(names) * BOX - (len(names) - 1) * 2 * GAP) / 2
        for column, name in enumerate(names):
            place[name] = (left + column * (BOX + 2 * GAP), MARGIN + row * (HEIGHT + GAP))
    height = 2 * MARGIN + len(rows) * (HEIGHT + GAP) - GAP
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
             '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
             'orient="auto"><path d="M0 0L10 5L0 10z" fill="#555"/></marker></defs>',
             f'<rect width="{WIDTH}" height="{height}" fill="white"/>']
    for one, other in drawn(graph):
        (x, y), (u, v) = place[one], place[other]
        start, end = (x + BOX / 2, y + HEIGHT), (u + BOX / 2, v)
        bend = (end[1] - start[1]) / 2
        # A way past the rows between goes round them.
        aside = 0 if level[one] - level[other] == 1 else 0.8 * BOX * (1 if start[0] >= WIDTH / 2 else -1)
        parts.append(f'<path d="M{start[0]:.0f} {start[1]:.0f}C{start[0] + aside:.0f} {start[1] + bend:.0f} '
                     f'{end[0] + aside:.0f} {end[1] - bend:.0f} {end[0]:.0f} {end[1]:.0f}" fill="none" stroke="#555" '
                     'stroke-width="1.2" marker-end="url(#tip)"/>')
    for name, (x, y) in place.items():
        title = "utils/ itself" if name == ITSELF else f"utils/{name}/"
        parts.append(f'<rect x="{x:.0f}" y="{y:.0f}" width="{BOX}" height="{HEIGHT}" rx="6" fill="#EAF3FA" '
                     'stroke="#0072B2"/>')
        parts.append(f'<text x="{x + 10:.0f}" y="{y + 20:.0f}" font-size="14" font-weight="bold">{title}</text>')
        parts += [f'<text x="{x + 10:.0f}" y="{y + 37 + 15 * number:.0f}" font-size="11">{html.escape(line)}</text>'
                  for number, line in enumerate(lines_of(says(name)))]
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
