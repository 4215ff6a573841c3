"""What clients talk to: dialects, files, health."""

#: Name -> "module:Class"; the class satisfies ``server.api.dialect.Dialect`` and takes its section of the settings.
#: Where two own the same prefix, the first does.
DIALECTS: dict[str, str] = {
    "modelslab": "server.api.modelslab.dialect:ModelsLab",
    "native": "server.api.native.dialect:Native",
}
