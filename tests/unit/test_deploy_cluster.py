"""deploy/cluster: definitions that an API server takes, and that agree with each other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
import yaml

from cni.cli.group import cli
from cni.ipam.cluster import takeover
from cni.ipam.cluster.pool import PoolConf
from cni.ipam.host_local.ranges import RangeConf
from cni.protocol.config import DNS, Route
from cni.store import settings
from tests.harness.openapi import structural_faults

Json = dict[str, Any]
DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CLUSTER = DEPLOY / "cluster"
GROUP = "ipam.cni-plugins.internal"
LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
COLUMN_TYPES = {"integer", "number", "string", "boolean", "date"}


def manifests(name: str) -> list[Json]:
    return [each for each in yaml.safe_load_all((CLUSTER / name).read_text()) if each]


CRDS = {crd["spec"]["names"]["kind"]: crd for crd in manifests("crds.yaml")}
RBAC = manifests("rbac.yaml")
POLICIES = manifests("policy.yaml")


def named(kind: str, of: list[Json]) -> dict[str, Json]:
    return {each["metadata"]["name"]: each for each in of if each["kind"] == kind}


def at(schema: Json, path: str) -> Json | None:
    """The schema of a simple JSONPath; None where it is not described."""
    for part in re.findall(r"\.(\w+)|(\[(?:[0-9]+|\*)\])", path):
        schema = schema.get("items", {}) if part[1] else schema.get("properties", {}).get(part[0])
        if schema is None:
            return None
    return schema


@pytest.mark.parametrize("kind", CRDS)
def test_names_of_a_definition(kind: str) -> None:
    """CustomResourceDefinitionSpec: the name is <plural>.<group>; names are DNS labels."""
    crd = CRDS[kind]
    names = crd["spec"]["names"]
    assert crd["apiVersion"] == "apiextensions.k8s.io/v1"
    assert crd["spec"]["group"] == GROUP
    assert not GROUP.endswith((".k8s.io", ".kubernetes.io")), "these need an approval"
    assert crd["metadata"]["name"] == f"{names['plural']}.{GROUP}"
    assert names["listKind"] == f"{kind}List"
    assert names["singular"] == kind.lower()
    for name in (names["plural"], names["singular"], *names["shortNames"], *names["categories"]):
        assert LABEL.fullmatch(name)
    assert crd["spec"]["scope"] == "Cluster"


def test_no_name_is_used_twice() -> None:
    every = [
        name
        for crd in CRDS.values()
        for names in [crd["spec"]["names"]]
        for name in (names["plural"], names["singular"], *names["shortNames"])
    ]
    assert len(every) == len(set(every))


@pytest.mark.parametrize("kind", CRDS)
def test_versions_and_schemas_of_a_definition(kind: str) -> None:
    versions = CRDS[kind]["spec"]["versions"]
    assert [version["storage"] for version in versions].count(True) == 1
    for version in versions:
        assert re.fullmatch(r"v[1-9][0-9]*((alpha|beta)[1-9][0-9]*)?", version["name"])
        schema = version["schema"]["openAPIV3Schema"]
        assert list(structural_faults(schema)) == []
        assert schema["description"]


@pytest.mark.parametrize("kind", CRDS)
def test_columns_show_what_there_is(kind: str) -> None:
    version = CRDS[kind]["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    columns = version["additionalPrinterColumns"]
    assert [column["name"] for column in columns][-1] == "Age"
    for column in columns:
        assert set(column) <= {"name", "type", "jsonPath", "description", "priority", "format"}
        assert column["type"] in COLUMN_TYPES
        path = column["jsonPath"]
        assert "*" not in path, "the server shows only the first value that a path finds"
        if not path.startswith(".metadata.") and kind != "IPRecord":
            found = at(schema, path)
            assert found, f"{path} is not in the schema"
            assert found["type"] == column["type"]


def test_accounts_of_bindings_exist_and_their_roles() -> None:
    accounts = named("ServiceAccount", RBAC)
    roles = named("ClusterRole", RBAC)
    for binding in named("ClusterRoleBinding", RBAC).values():
        assert binding["roleRef"]["apiGroup"] == "rbac.authorization.k8s.io"
        assert binding["roleRef"]["name"] in roles
        for subject in binding["subjects"]:
            assert accounts[subject["name"]]["metadata"]["namespace"] == subject["namespace"]


def rules() -> Iterator[Json]:
    for role in named("ClusterRole", RBAC).values():
        yield from role["rules"]


def test_rules_name_resources_that_exist_and_nothing_more() -> None:
    plurals = {crd["spec"]["names"]["plural"] for crd in CRDS.values()}
    for rule in rules():
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
        if rule["apiGroups"] == [GROUP]:
            assert set(rule["resources"]) <= plurals
        elif rule["apiGroups"] == [takeover.GROUP]:
            assert set(rule["resources"]) == set(takeover.KINDS.values())
            assert rule["verbs"] == ["list"]
        else:
            assert rule["apiGroups"] == [""]
            assert set(rule["verbs"]) <= {"get", "list"}


def test_nodes_cannot_change_pools_or_see_other_nodes() -> None:
    node = named("ClusterRole", RBAC)["cni-ipam-node"]["rules"]
    for rule in node:
        if "ippools" in rule["resources"] and rule["apiGroups"] == [GROUP]:
            assert rule["verbs"] == ["get", "list", "watch"]
        assert not {"nodes", "pods"} & set(rule["resources"])


def test_every_policy_is_bound_and_denies() -> None:
    policies = named("ValidatingAdmissionPolicy", POLICIES)
    bindings = named("ValidatingAdmissionPolicyBinding", POLICIES)
    assert {binding["spec"]["policyName"] for binding in bindings.values()} == set(policies)
    for binding in bindings.values():
        assert binding["spec"]["validationActions"] == ["Deny"]
    accounts = named("ServiceAccount", RBAC)
    for policy in policies.values():
        assert policy["spec"]["failurePolicy"] == "Fail"
        [condition] = policy["spec"]["matchConditions"]
        [account] = re.findall(r"serviceaccount:kube-system:([\w-]+)", condition["expression"])
        assert account in accounts
        for validation in policy["spec"]["validations"]:
            assert validation["message"]
            assert validation["reason"] == "Forbidden"


def test_the_policies_are_about_all_that_nodes_can_change() -> None:
    watched = {
        resource
        for policy in named("ValidatingAdmissionPolicy", POLICIES).values()
        for rule in policy["spec"]["matchConstraints"]["resourceRules"]
        for resource in rule["resources"]
        if set(rule["operations"]) == {"CREATE", "UPDATE", "DELETE"}
    }
    changed = {
        resource
        for rule in named("ClusterRole", RBAC)["cni-ipam-node"]["rules"]
        for resource in rule["resources"]
        if set(rule["verbs"]) - {"get", "list", "watch"}
    }
    assert changed == watched


def test_the_patch_of_the_daemonset_fits() -> None:
    patch = yaml.safe_load((CLUSTER / "node.yaml").read_text())["spec"]["template"]["spec"]
    pod = yaml.safe_load((DEPLOY / "daemonset.yaml").read_text())["spec"]["template"]["spec"]
    assert patch["serviceAccountName"] in named("ServiceAccount", RBAC)
    assert {each["name"] for each in patch["containers"]} <= {
        each["name"] for each in pod["containers"]
    }


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (PoolConf, ".spec"),
        (RangeConf, ".spec.ranges[*][*]"),
        (Route, ".spec.routes[*]"),
        (DNS, ".spec.dns"),
    ],
)
def test_a_pool_has_the_keys_that_the_plugin_reads(kind: type, path: str) -> None:
    schema = at(CRDS["IPPool"]["spec"]["versions"][0]["schema"]["openAPIV3Schema"], path)
    assert schema is not None
    keys = {field.encode_name for field in msgspec.structs.fields(kind)}
    assert {key.lower() for key in schema["properties"]} == {key.lower() for key in keys}


def test_the_deployment_that_reconciles() -> None:
    """Its account may do it; its words are a command; its file is one that the command reads."""
    made = manifests("reconcile.yaml")
    [deployment] = named("Deployment", made).values()
    spec = deployment["spec"]
    template = spec["template"]
    assert spec["selector"]["matchLabels"] == template["metadata"]["labels"]
    pod = template["spec"]
    bound = named("ClusterRoleBinding", RBAC)["cni-ipam-reconcile"]
    assert pod["serviceAccountName"] == bound["subjects"][0]["name"]
    assert pod["automountServiceAccountToken"] is True
    [container] = pod["containers"]
    group: Any = cli
    words = list(container["args"])
    while isinstance(group, click.Group):
        name = words.pop(0)
        group = group.get_command(click.Context(group), name)
        assert group is not None, name
    group.make_context(name, words)
    [volume] = pod["volumes"]
    config = named("ConfigMap", made)[volume["configMap"]["name"]]
    [mount] = container["volumeMounts"]
    [file] = config["data"]
    assert f"{mount['mountPath']}/{file}" == settings.NODE_FILE
    assert json.loads(config["data"][file]) == {"store": {"type": "kubernetes"}}
