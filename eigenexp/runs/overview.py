"""A run in one line and in one page: what run tables sort by, and what a description tells."""

from __future__ import annotations

import contextlib
import html
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eigenexp.console import known_digits
from eigenexp.errors import ImageError, origin
from eigenexp.runs.folder import RunFolder

if TYPE_CHECKING:
    from eigenexp.spectrum import Spectrum

__all__ = [
    "BOUND_COLUMNS",
    "ROW_COLUMNS",
    "description",
    "escape_markdown",
    "failed_description",
    "known_end",
    "model_name",
    "problem_lines",
    "records_row",
    "result_row",
    "study_description",
    "sweep_description",
    "worst_status",
]

ROW_COLUMNS = ("model", "picture", "k", "lambda_max", "lambda_min", "worst_residual")
"""What tables of runs and of jobs have in common; ``worst_residual`` is over λmax."""
BOUND_COLUMNS = ("lambda_max_bound", "lambda_min_bound", "null_space")
"""What tables need beside to print λ with the digits that are known; ``null_space`` counts."""
_MOST_PAIRS = 12
_STATUSES = ("unconverged", "unverified", "converged")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|~])")


def model_name(model: Mapping[str, Any]) -> str:
    """Return a configured model's class, with the layer it is cut at."""
    name = re.split(r"[.:]", str(model.get("_target_", "")))[-1]
    if name.endswith("_network") and model.get("name"):
        name = f"{name.removesuffix('_network')}.{model['name']}"
    layer = model.get("layer")
    return name if layer is None else f"{name}.{layer}"


def problem_lines(run: RunFolder, record: Mapping[str, Any]) -> list[str]:
    """Return what was asked of a run: its name, the picture with size and crop, the solver's terms.

    A damaged or foreign record may hold anything: what it does not tell is left out.
    """
    from eigenexp.pictures.saving import PICTURE_FILE, load_saved_picture  # imports torch

    config = _mapping(record.get("config"))
    image, solver = _mapping(config.get("image")), _mapping(config.get("solver"))
    facts: Mapping[str, Any] = {}
    with contextlib.suppress(ImageError):  # saved with the result
        facts = load_saved_picture(run.results / PICTURE_FILE).record
    name = [f"name {config['run_name']}"] if config.get("run_name") else []
    picture = [str(image.get("source") or image.get("path") or "")]
    if isinstance(shape := facts.get("shape"), list):
        picture.append("x".join(str(side) for side in shape[-2:]))
    picture += [
        f"{key} {value}"
        for key in ("crop", "resize")
        if (value := facts.get(key, image.get(key))) is not None
    ]
    terms = [f"{key} {solver[key]}" for key in ("method", "k", "which", "tol") if key in solver]
    lines = [f"picture {', '.join(picture)}"] if any(picture) else []
    return [*name, *lines, *([f"solver {', '.join(terms)}"] if terms else [])]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def result_row(spectrum: Spectrum) -> dict[str, Any]:
    """Return a result's line of a table.

    ``lambda_max`` and ``lambda_min`` (``None`` for an end that was not asked for),
    :data:`BOUND_COLUMNS`, ``worst_residual`` (over λmax), ``status`` (the worst of the pairs'),
    ``pairs``, ``pairs_proven``, ``products``.
    """
    values, bounds = spectrum.eigenvalues.tolist(), spectrum.error_bounds.tolist()
    scale = float(spectrum.scale)
    index = spectrum.eigenindex.tolist()
    worst = float(spectrum.residuals.max()) if values else float("nan")
    has_top = bool(values) and index[0] == 0
    has_bottom = bool(values) and index[-1] == spectrum.order - 1
    return {
        "lambda_max": values[0] if has_top else None,
        "lambda_min": values[-1] if has_bottom else None,
        "lambda_max_bound": bounds[0] if has_top else None,
        "lambda_min_bound": bounds[-1] if has_bottom else None,
        "null_space": spectrum.null_space_dimension,
        "worst_residual": worst / scale if scale > 0 else worst,
        "status": worst_status([status.value for status in spectrum.status]),
        "pairs": len(values),
        "pairs_proven": int(spectrum.converged.sum()),
        "products": spectrum.num_products,
    }


def known_end(row: Mapping[str, Any], name: str) -> str:
    """Return ``lambda_max`` or ``lambda_min`` of a row with the digits known; "" without a value.

    A row of a run from before bounds were kept, or a damaged one, has a number alone.
    """
    value = row.get(name)
    if not isinstance(value, (int, float)):
        return ""
    null = row.get("null_space")
    if name == "lambda_min" and isinstance(null, int) and null > 0:
        return "0 (null space)"
    bound = row.get(f"{name}_bound")
    error = float(bound) if isinstance(bound, (int, float)) else float("inf")
    return known_digits(float(value), error, is_ceiling=name == "lambda_min")


def records_row(records: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the line of a study: the worst residual and status of its pictures, all products.

    Eigenvalues of one picture are not those of another: there are none.
    """
    solved = [record for record in records.values() if record.get("pairs")]
    pairs = [pair for record in solved for pair in record["pairs"]]
    return {
        "worst_residual": max((float(p["relative_residual"]) for p in pairs), default=None),
        "status": worst_status([str(pair["status"]) for pair in pairs]) if pairs else None,
        "products": sum(int(record["num_products"]) for record in solved),
    }


def worst_status(statuses: Sequence[str]) -> str:
    """Return the status that is furthest from a proof; of none, ``unconverged``."""
    return next((status for status in _STATUSES if status in statuses), "unconverged")


def escape_markdown(text: object) -> str:
    """Return any text as one line of Markdown that shows it, and neither formats nor obeys it."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    escaped = _MARKDOWN.sub(r"\\\1", html.escape(plain, quote=False))
    return escaped.replace("://", "&#58;//")  # some renderers make a link of any address


def description(title: str, spectrum: Spectrum) -> str:
    """Return a result as Markdown: verdict, table of pairs, why it ended, notes.

    Parameters
    ----------
    title
        Names of model and picture; any text, shown as it is.
    spectrum
        The result; may be empty.
    """
    row = result_row(spectrum)
    lines = [
        f"**{escape_markdown(title)}**: {row['pairs_proven']} of {row['pairs']} pairs proven, "
        f"{row['products']} products with {escape_markdown(spectrum.method or 'a solver')}. "
        f"{escape_markdown(spectrum.stop_message.capitalize())}.",
        "",
    ]
    pairs = spectrum.rows()
    if pairs:
        lines += [
            "| index | eigenvalue | d′ = 1 at | residual / λmax | error bound | status |",
            "|---:|---:|---:|---:|---:|:---|",
        ]
    half = _MOST_PAIRS // 2
    left_out = max(0, len(pairs) - _MOST_PAIRS)
    shown = [*pairs[:half], *pairs[-half:]] if left_out else pairs
    for place, pair in enumerate(shown):
        if left_out and place == half:
            lines.append(f"| … | {left_out} more | | | | |")
        lines.append(
            f"| {pair['index']} | {pair['known']} | {pair['known_threshold']} "
            f"| {pair['relative_residual']:.1e} | {pair['error_bound']:.1e} | {pair['status']} |"
        )
    lines += [f"\n*{escape_markdown(note)}*" for note in spectrum.notes[:6]]
    return "\n".join(lines)


def study_description(title: str, records: Mapping[int, Mapping[str, Any]], total: int) -> str:
    """Return a study as Markdown: how far it is, the largest and smallest of the first pictures.

    Parameters
    ----------
    title
        Names of model and folder; any text, shown as it is.
    records
        Of the pictures that are done, by position.
    total
        How many there are to be.
    """
    solved = [record for record in records.values() if record.get("pairs")]
    proven = sum(bool(record.get("converged")) for record in solved)
    lines = [
        f"**{escape_markdown(title)}**: {len(solved)} of {total} pictures solved, every pair "
        f"proven at {proven}.",
        "",
    ]
    if solved:
        lines += ["| picture | largest λ | smallest λ | status |", "|:---|---:|---:|:---|"]
    for record in solved[:_MOST_PAIRS]:
        first, last = record["pairs"][0], record["pairs"][-1]
        cells = [record["name"], first.get("known", ""), last.get("known", ""),
                 worst_status([str(pair.get("status")) for pair in record["pairs"]])]  # fmt: skip
        lines.append(f"| {' | '.join(escape_markdown(cell) for cell in cells)} |")
    if len(solved) > _MOST_PAIRS:
        lines.append(f"| … {len(solved) - _MOST_PAIRS} more | | | |")
    failed = [record for record in records.values() if record.get("status") == "failed"]
    lines += [f"\n*{escape_markdown(record.get('error'))}*" for record in failed[:6]]
    return "\n".join(lines)


def sweep_description(title: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Return a sweep as Markdown: a line a job, by what it differs in.

    Parameters
    ----------
    title
        Its name; any text, shown as it is.
    rows
        Of each job, what tells it from the others, and its line of the table.
    """
    jobs = "1 job" if len(rows) == 1 else f"{len(rows)} jobs"
    lines = [f"**{escape_markdown(title)}**: {jobs}.", ""]
    lines += ["| job | λmax | λmin | residual / λmax | status |", "|:---|---:|---:|---:|:---|"]
    for name, row in rows[: 2 * _MOST_PAIRS]:
        residual = row.get("worst_residual")
        cells = [
            name,
            known_end(row, "lambda_max"),
            known_end(row, "lambda_min"),
            f"{residual:.1e}" if isinstance(residual, float) else "",
            row.get("status") or "",
        ]
        lines.append(f"| {' | '.join(escape_markdown(cell) for cell in cells)} |")
    if len(rows) > 2 * _MOST_PAIRS:
        lines.append(f"| … {len(rows) - 2 * _MOST_PAIRS} more | | | | |")
    return "\n".join(lines)


def failed_description(title: str, error: BaseException) -> str:
    """Return what a run that failed is described with."""
    text = escape_markdown(f"{type(origin(error)).__name__}: {error}"[:600])
    return f"**{escape_markdown(title)}** failed.\n\n{text}"
