"""HTML pages that load nothing: the templates of this folder, with the report's look."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipelines.report.charts import LIGHT

TEMPLATES = Path(__file__).parent / "templates"


def environment() -> Environment:
    """The templates; every text is escaped, and a name that is not given is an error."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: object) -> str:
    """Fill in the template of this file name with `values`."""
    return environment().get_template(template).render(light=LIGHT, **values)
