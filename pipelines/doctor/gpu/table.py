"""The check's outcomes as plain text: a line per row, and a verdict per part."""

from pipelines.doctor.gpu.parts import Outcome, Row


def render(outcomes: dict[str, Outcome]) -> str:
    """All rows by part, then one line per part with its verdict."""
    blocks = []
    for name, outcome in outcomes.items():
        lines = [name, *(row_line(row) for row in outcome.rows)]
        blocks.append("\n".join(lines))
    verdicts = [
        f"{name:14s} {outcome.verdict:8s} {outcome.seconds:6.1f} s  {_why(outcome)}".rstrip()
        for name, outcome in outcomes.items()
    ]
    return "\n".join([*blocks, "", *verdicts])


def row_line(row: Row) -> str:
    """A row as one line."""
    figures = "  ".join(f"{name} {_shown(value)}" for name, value in row.figures.items())
    problem = f"  WRONG: {row.problem}" if row.problem else ""
    return f"  {row.case:28s} {figures}{problem}"


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _why(outcome: Outcome) -> str:
    problems = [f"{row.case}: {row.problem}" for row in outcome.rows if row.problem]
    reasons = [outcome.reason] if outcome.reason else []
    if problems:
        reasons.append(f"{len(problems)} of {len(outcome.rows)} rows, such as {problems[0]}")
    return "; ".join(reasons)
