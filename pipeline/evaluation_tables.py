"""The evaluation as tables for people: Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

_COLUMNS = (
    ("chamfer_l1_mm", "chamfer L1 mm", 3),
    ("chamfer_l2_mm2", "chamfer L2 mm²", 3),
    ("point_to_triangle_mm", "point to triangle mm", 3),
    ("normal_consistency", "normals", 4),
    ("f_score_1mm", "F@1", 3),
    ("f_score_5mm", "F@5", 3),
    ("f_score_10mm", "F@10", 3),
    ("f_score_20mm", "F@20", 3),
)

_REGIONS = ("face", "head", "hair")

_HEAD = ("region", "method", "scans", "failures", *(title for _, title, _ in _COLUMNS), "95 % interval mm")
_LEVEL_HEAD = ("level", *_HEAD)

# a level may be named by a rig, which is free text; an underscore within a word means nothing in Markdown
_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\|*`<["} | {"\n": " "})
_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "_&%#${}"}
    | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "²": "$^2$", "\n": " "}
)


def markdown_table(evaluation: Mapping[str, Any]) -> str:
    """Means over the held-out scans by region and method, with the interval of the point-to-triangle distance.

    A method that models no more than faces has no line for heads.
    """
    lines = [f"# Evaluation of {evaluation['model']}", "", evaluation["protocol"], ""]
    if not evaluation["held_out"]:
        lines += ["No subject is held out: there is nothing to fit to.", ""]
    else:
        lines += [*_markdown_rows(_HEAD, _rows(evaluation["summary"])), ""]
        lines += _by_expression(evaluation["by_expression"])
    training = evaluation["training_summary"].get("face", {})
    if training:
        title = "| re-meshed training faces to their scans | mean of medians mm | mean of 95th percentiles mm |"
        figures = (training["accuracy_median_mm"]["mean"], training["accuracy_p95_mm"]["mean"])
        count = evaluation["training_summary"]["scans"]
        lines += [title, "| --- | --- | --- |", f"| {count} subjects | {figures[0]:.3f} | {figures[1]:.3f} |", ""]
    return "\n".join(lines)


def latex_table(evaluation: Mapping[str, Any]) -> str:
    """The table of means as a LaTeX ``tabular`` with booktabs' rules, to be put into a paper as it is."""
    return _tabular(_HEAD, _rows(evaluation["summary"]), words=2)


def _tabular(head: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    """Rows of cells, the first so many of them words and the others numbers."""
    columns = "l" * words + "r" * (len(head) - words)
    lines = ["% needs \\usepackage{booktabs}", f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
    titles, *values = (" & ".join(cell.translate(_LATEX) for cell in row) + " \\\\" for row in (head, *rows))
    lines += [titles, "\\midrule", *values]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _markdown_rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    titles, *values = ("| " + " | ".join(cell.translate(_MARKDOWN) for cell in row) + " |" for row in (head, *rows))
    return [titles, "|" + " --- |" * len(head), *values]


def protocol_markdown(document: Mapping[str, Any]) -> str:
    """A protocol's means by level, region and method."""
    head, *rows = protocol_cells(document)
    title = f"# {document['model']}: {document['protocol']}"
    return "\n".join([title, "", document["what"], "", *_markdown_rows(head, rows), ""])


def protocol_latex(document: Mapping[str, Any]) -> str:
    """The same as a LaTeX ``tabular`` with booktabs' rules."""
    return _tabular(_LEVEL_HEAD, _level_rows(document), words=3)


def protocol_csv(document: Mapping[str, Any]) -> str:
    """Every fitted scan, level, method and region of a protocol as a line."""
    return _csv(document["rows"], ("level", "key"))


def protocol_cells(document: Mapping[str, Any]) -> list[list[str]]:
    """The same as lines of cells; the first has the columns' titles."""
    return [list(_LEVEL_HEAD), *_level_rows(document)]


def _level_rows(document: Mapping[str, Any]) -> list[list[str]]:
    return [[level, *row] for level, summary in document["levels"].items() for row in _rows(summary)]


def _by_expression(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The face's mean point-to-triangle distance of each method on each expression."""
    methods = sorted({method for summary in summaries.values() for method in summary})
    rows = []
    for expression, summary in summaries.items():
        figures = (summary[method].get("face", {}).get("point_to_triangle_mm") for method in methods)
        cells = ["-" if figure is None else f"{figure['mean']:.3f}" for figure in figures]
        rows.append([expression, *cells])
    return [*_markdown_rows(["face, point to triangle mm", *methods], rows), ""]


def _rows(summary: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for region in _REGIONS:
        for method, of_method in summary.items():
            figures = of_method.get(region, {})
            if not of_method[f"{region}_scans"]:
                continue  # the scans have none, or it is not the method's to model
            row = [region, method, str(of_method[f"{region}_scans"]), str(of_method["failures"])]
            row += [f"{figures[name]['mean']:.{digits}f}" if name in figures else "-" for name, _, digits in _COLUMNS]
            distance = figures.get("point_to_triangle_mm")
            row.append(f"{distance['low']:.3f} to {distance['high']:.3f}" if distance else "-")
            rows.append(row)
    return rows


def csv_table(evaluation: Mapping[str, Any]) -> str:
    """Every held-out scan, method and region as a line; empty cells where a method failed."""
    return _csv(evaluation["held_out"], ("key",))


def _csv(rows: Sequence[Mapping[str, Any]], named: Sequence[str]) -> str:
    out = io.StringIO()
    names = sorted(
        {
            name
            for row in rows
            for method in row["methods"].values()
            for figures in method["regions"].values()
            for name in figures
        }
    )
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*named, "method", "region", "failure", *names])
    for row in rows:
        for method, entry in row["methods"].items():
            for region in _REGIONS:
                if region in entry["absent"]:
                    continue
                figures = entry["regions"].get(region, {})
                cells = [f"{figures[name]:.6g}" if name in figures else "" for name in names]
                writer.writerow([*(row[name] for name in named), method, region, entry["failure"] or "", *cells])
    return out.getvalue()
