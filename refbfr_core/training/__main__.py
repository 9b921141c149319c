"""`accelerate launch --num_processes N -m refbfr_core.training NAME key=value ...`: `run` for several processes."""

from __future__ import annotations

import sys

from refbfr_core.errors import ConfigError
from refbfr_core.training import run


def main(arguments: list[str]) -> None:
    """First argument: a recipe's name; the others: keyword arguments of `run` as key=value (resume=true)."""
    if not arguments:
        raise ConfigError("name a recipe: python -m refbfr_core.training NAME out=FOLDER [key=value ...]")
    name, *rest = arguments
    options: dict[str, str | bool | float] = {}
    for pair in rest:
        key, sign, value = pair.partition("=")
        if not sign:
            raise ConfigError(f"{pair!r} is not of the form key=value, for example steps=1000.")
        options[key] = value
    if "resume" in options:
        options["resume"] = str(options["resume"]).lower() in ("1", "true", "yes")
    if "minutes" in options:
        options["minutes"] = float(options["minutes"])
    options.setdefault("out", f"runs/{name}")
    run(name, **options)


if __name__ == "__main__":
    main(sys.argv[1:])
