"""What every method's run leaves has one format (docs/run_report.md)."""

import json
from pathlib import Path

from thurl.recipe.validate import load_recipe


COMMON = {
    "format", "recipe", "overrides", "versions", "machine", "commit", "created", "runs", "summary", "method",
    "settings",
}  # fmt: skip


def check_run_report(results, page):
    """The results file has the common keys and can be run again from its settings; the page has the common frame."""
    document = json.loads(Path(results).read_text(encoding="utf-8"))
    assert COMMON <= set(document), COMMON - set(document)
    (record,) = document["runs"]
    assert isinstance(record["seed"], int) and record["seconds"] >= 0
    assert document["summary"]["seconds"]["mean"] == record["seconds"]
    again = Path(results).with_name("again.yaml")
    again.write_text(json.dumps(document["settings"]), encoding="utf-8")
    assert load_recipe(again).recipe.model_dump(mode="json", exclude_unset=True) == document["settings"]
    assert document["settings"]["method"] == document["method"]
    html = Path(page).read_text(encoding="utf-8")
    parts = ["<header><h1>", "<p class='lead'>", "<dl class='facts'>", "<section><h2>", "<footer>thurl "]
    places = [html.find(part) for part in parts]
    assert -1 not in places and places == sorted(places), dict(zip(parts, places, strict=True))
    assert "default-src 'none'" in html
