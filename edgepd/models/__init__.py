"""The catalog of installed models: what is there, which one is in use, and where new ones come from."""

from edgepd.models.catalog import DEFAULT_MODEL, Catalog, Installed

__all__ = ["DEFAULT_MODEL", "Catalog", "Installed"]
