"""`mnemos model ...`: which models there are, and fetching one."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mnemos.tui import console, output
from mnemos.tui.options import Json, UnusedBank, UnusedNamespace

if TYPE_CHECKING:
    from mnemos.attention.registry import ModelInfo

ModelName = Annotated[
    str | None,
    typer.Argument(
        metavar="[NAME|PATH]", envvar="MNEMOS_MODEL", help="The default model without it.", show_default=False
    ),
]


def list_models(bank: UnusedBank = None, namespace: UnusedNamespace = "default", json: Json = False) -> None:
    """List the models known by name."""
    from mnemos.attention import registry

    found = registry.list_models()
    if json:
        output.document({"models": [_form(model) for model in found]})
        return
    rows = [
        (
            model.name,
            "yes" if model.present else "no",
            output.amount(model.file_bytes),
            model.license or "-",
            model.title + (" (default)" if model.is_default else ""),
        )
        for model in found
    ]
    output.table(("name", "present", "size", "license", "title"), rows, right=("size",))


def show(
    name: ModelName = None,
    bank: UnusedBank = None,
    namespace: UnusedNamespace = "default",
    json: Json = False,
) -> None:
    """Show what is known of a model, without loading it."""
    from mnemos.attention import registry

    form = _form(registry.show(registry.resolve_name(name)))
    if json:
        output.document({"model": form})
    else:
        output.fields(form)


def pull(
    name: ModelName = None,
    bank: UnusedBank = None,
    namespace: UnusedNamespace = "default",
    json: Json = False,
) -> None:
    """Fetch a model's weights, and its sentence encoder's, if they aren't here yet."""
    from mnemos.attention import registry
    from mnemos.attention.pull import pull as fetch

    if registry.is_hub(named := registry.resolve_name(name)):
        from mnemos.attention.hub import fetch_from_hub

        path = fetch_from_hub(named)
        if json:
            output.document({"model": named, "path": str(path)})
        else:
            print(path)
        return
    from mnemos.attention.embedder_files import GRANITE, KNOWN_EMBEDDERS, fetch_embedder

    if (encoder := KNOWN_EMBEDDERS.get(named)) is None:
        known = registry.known_model(named)
        with console.progress(f"fetching {known.name}", in_bytes=True) as on_progress:
            path = fetch(known.name, on_progress)
        encoder = GRANITE if known.name in registry.calibrated_names() else None
    else:
        path = encoder.folder
    if encoder is not None:
        with console.progress(f"fetching {encoder.name}", in_bytes=True) as on_progress:
            fetch_embedder(encoder, on_progress)
    if json:
        output.document({"model": named, "path": str(path)})
    else:
        print(path)


def _form(model: "ModelInfo") -> dict[str, Any]:
    return asdict(model) | {"path": str(model.path)}
