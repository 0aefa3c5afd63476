"""`mnemos train ...`: training, told as it goes."""

import typer

train = typer.Typer(
    name="train", help="Train routers and small models.", no_args_is_help=True, rich_markup_mode=None
)
