"""RBAC, and ValidatingAdmissionPolicies whose CEL expressions were translated by hand.

There is no evaluator of CEL here. Each expression of the policies in deploy/cluster has its
meaning below, under its exact text; an expression that has none cannot be loaded. So these tests
show what the rule refuses as it is meant, and not that an API server reads the text that way.

Sources: kubernetes.io, "Using RBAC Authorization"; "Validating Admission Policy": `object` is null
in DELETE, `oldObject` in CREATE; the bindings decide on actions, `failurePolicy: Fail` turns an
error of an expression into a refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
NODE_CLAIM = "authentication.kubernetes.io/node-name"


@dataclass(frozen=True)
class User:
    name: str
    groups: tuple[str, ...] = ()
    extra: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def node(self) -> str:
        """The node of the pod that the token is bound to. Raises KeyError, as CEL does."""
        return self.extra[NODE_CLAIM][0]


@dataclass(frozen=True)
class Attempt:
    """What an expression may look at."""

    user: User
    operation: str
    name: str
    object: Json | None
    old: Json | None


Meaning = Callable[[Attempt], bool]
MEANINGS: dict[str, Meaning] = {}


def meaning(text: str) -> Callable[[Meaning], Meaning]:
    """Say what an expression means; blanks do not count."""

    def note(function: Meaning) -> Meaning:
        MEANINGS[" ".join(text.split())] = function
        return function

    return note


@meaning("request.userInfo.username == 'system:serviceaccount:kube-system:cni-plugins'")
def _is_a_node(attempt: Attempt) -> bool:
    return attempt.user.name == "system:serviceaccount:kube-system:cni-plugins"


@meaning("""has(request.userInfo.extra) &&
    'authentication.kubernetes.io/node-name' in request.userInfo.extra""")
def _has_the_claim(attempt: Attempt) -> bool:
    return NODE_CLAIM in attempt.user.extra


@meaning("object == null || (has(object.spec.node) && object.spec.node == variables.node)")
def _becomes_its_own(attempt: Attempt) -> bool:
    return attempt.object is None or attempt.object["spec"]["node"] == attempt.user.node


@meaning("oldObject == null || (has(oldObject.spec.node) && oldObject.spec.node == variables.node)")
def _was_its_own(attempt: Attempt) -> bool:
    return attempt.old is None or attempt.old["spec"]["node"] == attempt.user.node


@meaning("""(variables.name.startsWith('spaces--') && request.operation != 'DELETE') ||
    variables.name == 'nodes--' + variables.node ||
    (variables.name.startsWith('wanted--') && variables.name.endsWith('--' + variables.node)) ||
    (variables.name.startsWith('endpoints--') && variables.name.endsWith('--' + variables.node) &&
    (object == null || (has(object.spec.node) && object.spec.node == variables.node)) &&
    (oldObject == null || (has(oldObject.spec.node) && oldObject.spec.node == variables.node)))""")
def _is_its_record(attempt: Attempt) -> bool:
    name, node = attempt.name, attempt.user.node
    if name.startswith("spaces--"):
        return attempt.operation != "DELETE"
    if name.startswith("endpoints--") and name.endswith(f"--{node}"):
        values = [each["spec"] for each in (attempt.object, attempt.old) if each is not None]
        return all(value.get("node") == node for value in values)
    wanted = name.startswith("wanted--") and name.endswith(f"--{node}")
    return wanted or name == f"nodes--{node}"


# What `variables.…` is in the expressions above; checked, so that nobody changes one of them only.
VARIABLES = {
    "node": "request.userInfo.extra['authentication.kubernetes.io/node-name'][0]",
    "name": "object != null ? object.metadata.name : oldObject.metadata.name",
}


class Policies:
    """The policies and bindings of some manifests."""

    def __init__(self) -> None:
        self.policies: dict[str, Json] = {}
        self.bound: list[Json] = []

    def add(self, manifest: Json) -> None:
        if manifest["kind"] == "ValidatingAdmissionPolicyBinding":
            self.bound.append(manifest)
            return
        spec = manifest["spec"]
        for entry in [*spec.get("matchConditions", ()), *spec["validations"]]:
            _translated(entry["expression"])
        for variable in spec.get("variables", ()):
            if VARIABLES.get(variable["name"]) != variable["expression"]:
                raise LookupError(f"no translation of the variable {variable}")
        self.policies[manifest["metadata"]["name"]] = manifest

    def refusal(self, group: str, resource: str, attempt: Attempt) -> Json | None:
        """The first validation that denies: message and reason."""
        for binding in self.bound:
            policy = self.policies[binding["spec"]["policyName"]]
            if "Deny" not in binding["spec"]["validationActions"]:
                continue
            if _applies(policy["spec"], group, resource, attempt):
                for validation in policy["spec"]["validations"]:
                    if not _holds(validation["expression"], attempt):
                        return {
                            "policy": policy["metadata"]["name"],
                            "binding": binding["metadata"]["name"],
                            "message": validation.get("message", "failed expression"),
                            "reason": validation.get("reason", "Invalid"),
                        }
        return None


def _translated(expression: str) -> Meaning:
    text = " ".join(expression.split())
    if text not in MEANINGS:
        raise LookupError(f"no translation of the expression {text!r}")
    return MEANINGS[text]


def _holds(expression: str, attempt: Attempt) -> bool:
    try:
        return _translated(expression)(attempt)
    except (KeyError, TypeError, IndexError):
        return False


def _applies(spec: Json, group: str, resource: str, attempt: Attempt) -> bool:
    for rule in spec["matchConstraints"]["resourceRules"]:
        if (
            group in rule["apiGroups"]
            and resource in rule["resources"]
            and attempt.operation in rule["operations"]
        ):
            break
    else:
        return False
    return all(_holds(c["expression"], attempt) for c in spec.get("matchConditions", ()))


class Roles:
    """ClusterRoles and Roles, and who is bound to them."""

    def __init__(self) -> None:
        self.rules: dict[tuple[str, str], list[Json]] = {}
        self.bindings: list[Json] = []

    def add(self, manifest: Json) -> None:
        if manifest["kind"] in ("ClusterRole", "Role"):
            self.rules[manifest["kind"], manifest["metadata"]["name"]] = manifest["rules"]
        else:
            self.bindings.append(manifest)

    def allow(self, user: User, verb: str, group: str, resource: str, name: str) -> bool:
        if "system:masters" in user.groups:
            return True
        for binding in self.bindings:
            if any(_is_subject(user, subject) for subject in binding["subjects"]):
                reference = binding["roleRef"]
                for rule in self.rules.get((reference["kind"], reference["name"]), ()):
                    if _permits(rule, verb, group, resource, name):
                        return True
        return False


def _is_subject(user: User, subject: Json) -> bool:
    if subject["kind"] == "ServiceAccount":
        return user.name == f"system:serviceaccount:{subject['namespace']}:{subject['name']}"
    if subject["kind"] == "Group":
        return subject["name"] in user.groups
    return bool(user.name == subject["name"])


def _permits(rule: Json, verb: str, group: str, resource: str, name: str) -> bool:
    return (
        group in rule.get("apiGroups", ())
        and (resource in rule["resources"] or "*" in rule["resources"])
        and (verb in rule["verbs"] or "*" in rule["verbs"])
        # A rule with names permits no request without one: create, list without a selector.
        and (not rule.get("resourceNames") or name in rule["resourceNames"])
    )
