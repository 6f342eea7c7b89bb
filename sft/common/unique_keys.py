"""YAML in which a key stands once in its mapping; PyYAML takes the last of several in silence."""

from typing import Any

import yaml

from sft.common.command import UserError


class UniqueKeys(yaml.SafeLoader):
    """A safe loader that raises `UserError` for a key that stands twice."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise UserError(
                    f"{key.value} stands twice, in lines {lines[key.value]} and {line}: delete one of them"
                )
            lines[key.value] = line
        return node
