"""Names that people give to domains."""

from __future__ import annotations

from samcl_core.config import valid_domain_name
from samcl_core.errors import UsageError

__all__ = ["check_name"]


def check_name(domain: str) -> None:
    """Refuse a name that cannot be a domain.

    Raises:
        UsageError: with the reason.
    """
    try:
        valid_domain_name(domain)
    except ValueError as exc:
        raise UsageError(str(exc), hint="--domain NAME") from exc
