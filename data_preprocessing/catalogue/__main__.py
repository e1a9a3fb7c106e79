"""Print the catalogue as the page docs/datasets.md.

python -m data_preprocessing.catalogue > docs/datasets.md
"""

from data_preprocessing.catalogue import CATALOGUE, DataSet, classes_of


def page() -> str:
    """The catalogue as Markdown: a table of all sets, then where to get each and what to know of it."""
    lines = [
        "# The data sets",
        "",
        "Made from `data_preprocessing/catalogue/` by",
        "`python -m data_preprocessing.catalogue > docs/datasets.md`.",
        "Counts are those of the sources or, where theirs are not known, of the predecessor (the earlier,",
        "unfinished project that this one replaces). What is marked (unconfirmed) rests on one weak source.",
        "Read a set's licence before you pass anything on.",
        "",
        "| data set | organ | classes | from | frame | access | pictures | one side of the split |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for e in CATALOGUE:
        count = e.true_count or e.seed_count or ""
        read_as = next((other for other in CATALOGUE if other.name == e.same_as), e)
        classes = ", ".join(sorted(classes_of(read_as))) or "as its folders say"
        cells = (_title(e), e.organ, classes, read_as.labels, e.shape, e.access, str(count), read_as.groups)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Where to get them, and what to know"]
    for e in CATALOGUE:
        lines += ["", f"**{_title(e)}**" + (f" (folder also {', '.join(e.aliases)})" if e.aliases else "")]
        facts = {
            "get": e.home or "no home known",
            "unpack": e.unpack,
            "looks like": f"`{e.marker}`" if e.marker else "",
            "licence": e.licence,
            "cite": e.cite,
            "same pictures as": e.same_as,
            "left out by default": "; ".join(f"{w} (`--include {k}`)" for k, w in sorted(e.left_out.items())),
            "note": e.note,
        }
        lines += [f"- {name}: {fact}" for name, fact in facts.items() if fact]
    return "\n".join(lines) + "\n"


def _title(entry: DataSet) -> str:
    return f"{entry.name} (right name: {entry.right_name})" if entry.right_name else entry.name


if __name__ == "__main__":
    print(page(), end="")
