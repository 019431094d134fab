"""YAML as users mean it, and no more than a recipe needs: numbers, words, lists and fields, each key once.

1e-4 is a number; yes, no, on, off, dates and 12:30 are words; tags that make objects are refused, and so are texts that
are too long, too deep or, through their aliases, too large.
"""

import re

import yaml

MAX_BYTES = 1 << 16  # the largest recipe has 4 KB, and PyYAML reads some 100 KB a second
_MAX_NODES, _MAX_DEPTH = 10_000, 20  # aliases counted as often as they are used
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = tuple(_TAG + name for name in ("null", "bool", "int", "float", "str", "seq", "map"))
_NUMBERS = "-+0123456789"


def read(text: str) -> object:
    """The plain value of a text. Raises yaml.YAMLError, whatever is wrong with it."""
    if len(text) > MAX_BYTES:
        raise yaml.YAMLError(f"more than {MAX_BYTES} characters")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node)
        return loader.construct_document(node)
    except RecursionError:
        raise _too_deep() from None
    except (ValueError, LookupError, ArithmeticError) as error:  # !!int x; numbers of more than 4300 digits
        raise yaml.YAMLError(f"a value that cannot be read ({error})") from None
    finally:
        loader.dispose()


def _check(root: yaml.Node) -> None:
    """Refuse what stands twice, and what would be too deep or too large with its aliases written out."""
    waiting, nodes = [(root, 1)], 0
    while waiting:
        node, depth = waiting.pop()
        nodes += 1
        if nodes > _MAX_NODES:
            raise yaml.YAMLError(f"more than {_MAX_NODES} values, aliases counted as often as they are used")
        if depth > _MAX_DEPTH:
            raise _too_deep()
        if isinstance(node, yaml.MappingNode):
            _require_unique(node)
            waiting += [(part, depth + 1) for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(part, depth + 1) for part in node.value]


def _require_unique(node: yaml.MappingNode) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            if key.value in seen:
                name = key.value if key.value.isprintable() and len(key.value) < 80 else repr(key.value)[:80]
                raise yaml.YAMLError(f"{name} stands twice, in lines {seen[key.value]} and {line}: remove one")
            seen[key.value] = line


def _too_deep() -> yaml.YAMLError:
    return yaml.YAMLError(f"values nested more than {_MAX_DEPTH} deep")


class _Loader(yaml.SafeLoader):
    """Without the types that YAML 1.1 guesses, and without constructors of anything but plain values."""

    yaml_constructors = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag in _PLAIN_TAGS or tag is None
    }
    yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in resolvers if tag in (_TAG + "null", _TAG + "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(_TAG + "bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_TAG + "int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list(_NUMBERS))
_Loader.add_implicit_resolver(
    _TAG + "float",
    re.compile(
        r"^[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
    ),
    list(_NUMBERS + "."),
)
