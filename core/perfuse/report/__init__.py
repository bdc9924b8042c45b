"""Reports about models, targets and backends."""

from typing import TYPE_CHECKING

from perfuse._lazy import lazy

if TYPE_CHECKING:
    from perfuse.report.console import safe as safe
    from perfuse.report.console import say as say

__getattr__, __dir__ = lazy(__name__, {"console": ("safe", "say")})
