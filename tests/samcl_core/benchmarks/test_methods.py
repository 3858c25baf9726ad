"""Names of what is compared: their adapters, families and groups."""

from __future__ import annotations

import pytest

from samcl_core.adapters import registered_adapters
from samcl_core.benchmarks.methods import FAMILIES, GROUPS, expand_methods, known_methods, parse_method
from samcl_core.errors import UsageError
from samcl_core.strategies import registered_strategies


@pytest.mark.parametrize(
    ("given", "name", "adapter", "variant"),
    [
        ("naive", "naive", "augmodule", "default"),
        ("naive@augmodule", "naive", "augmodule", "default"),
        ("naive@hq_decoder", "naive@hq_decoder", "hq_decoder", "hq_decoder"),
        ("ewc", "ewc", "hq_decoder", "hq_decoder"),
        ("ewc@hq_decoder", "ewc", "hq_decoder", "hq_decoder"),
        ("ewc@lora", "ewc@lora", "lora", "lora"),
        ("o_lora", "o_lora", "lora", "lora"),
        ("o_lora@lora", "o_lora", "lora", "lora"),
        ("l2p", "l2p", "prompt_tokens", "prompt_tokens"),
        ("bank", "bank_gaussian", "augmodule", "default"),
        ("bank@augmodule", "bank_gaussian", "augmodule", "default"),
        ("bank@slora", "bank@slora", "slora", "slora"),
        ("oracle@decoder", "oracle@decoder", "decoder", "decoder"),
        ("bank_reference", "bank_reference", "augmodule", "reference"),
        ("moda", "moda", "hq_decoder", "hq_decoder"),
        ("moda@decoder", "moda@decoder", "decoder", "decoder"),
    ],
)
def test_a_name_stands_for_one_method(given: str, name: str, adapter: str, variant: str) -> None:
    method = parse_method(given)
    assert (method.name, method.adapter, method.variant) == (name, adapter, variant)
    assert parse_method(method.name) == method


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(UsageError, match="strategy magic@lora is unknown"):
        parse_method("magic@lora")
    with pytest.raises(UsageError, match=r"adapter of ewc@magic is unknown, expected one of augmodule, .*slora"):
        parse_method("ewc@magic")
    with pytest.raises(UsageError, match="o_lora is made for adapter lora, found o_lora@hq_decoder"):
        parse_method("o_lora@hq_decoder")
    with pytest.raises(UsageError, match="adapter of ewc@ is unknown"):
        parse_method("ewc@")
    with pytest.raises(UsageError, match="no strategy is given"):
        expand_methods([])


def test_all_holds_every_strategy_and_every_adapter() -> None:
    found = expand_methods(["all"])
    assert {method.strategy for method in found} >= set(registered_strategies()) - {"bank", "moda"}
    assert {method.adapter for method in found if method.has_modules} == set(registered_adapters())
    assert {method.family for method in found} == set(FAMILIES)
    groups = {group: {method.name for method in expand_methods([group])} for group in GROUPS}
    assert groups["samcl"] | groups["cosam"] | groups["adapters"] <= groups["all"]
    assert {"naive@hq_decoder", "joint@hq_decoder", "ewc", "l2p", "moda"} <= groups["cosam"]
    assert len({method.title for method in found}) == len(found)
    assert [method.family for method in found] == sorted((method.family for method in found), key=FAMILIES.index)


def test_every_known_name_can_be_asked_for() -> None:
    assert len(known_methods()) > 15
    for name in known_methods():
        assert parse_method(name).title
