#!/usr/bin/env python3
"""Checks deploy/kubernetes against Kubernetes' own schemas, deploy/compose.yaml against that of the Compose specification, and both and
deploy/Dockerfile against what they promise.

    tests/manifests.py COMPOSE_SCHEMA

Needs the package kubernetes-validate, which brings the schemas and jsonschema. COMPOSE_SCHEMA is the specification's JSON schema. Where kubectl is
installed the kustomizations are built as well.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
# The oldest and the newest minor version that is looked at, and one between.
VERSIONS = ["1.27", "1.31", "1.35"]
# `run` as a workload starts it: what it promises in the comments of the manifests.
GRACE_SECONDS_MIN = 36


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def keys_of_the_reference():
    """The keys of the configuration, by section, as the annotated reference lists them."""
    reference = tomllib.loads((ROOT / "config" / "reconciled.toml").read_text())
    text = (ROOT / "config" / "reconciled.toml").read_text()
    commented = set(re.findall(r"^#?\s*([a-z_]+)\s*=", text, re.MULTILINE))
    return reference, commented


def check_variable(name):
    reference, known = keys_of_the_reference()
    parts = name.lower().split("__")
    assert parts[0] == "reconciled" and len(parts) >= 3, f"{name} sets nothing"
    assert parts[1] in reference, f"{name}: there is no section {parts[1]}"
    assert parts[-1] in reference[parts[1]] or parts[-1] in known, f"{name}: there is no key {parts[-1]}"


def check_schema(document, where):
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            raise AssertionError(f"{where} for Kubernetes {version}: {error}") from error


def check_pod(template, where):
    spec = template["spec"]
    assert spec["automountServiceAccountToken"] is False, f"{where} mounts a token"
    assert spec["terminationGracePeriodSeconds"] >= GRACE_SECONDS_MIN, f"{where} cuts requests off"
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True and security["seccompProfile"]["type"] == "RuntimeDefault", where
    for container in spec["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True, where
        assert context["capabilities"] == {"drop": ["ALL"]}, where
        variables = {variable["name"]: variable.get("value", "") for variable in container["env"]}
        check_probes(container, variables, where)
        for name in variables:
            check_variable(name)
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"] for volume in spec["volumes"]}
        assert volumes <= mounts, f"{where}: {volumes - mounts} is mounted nowhere"
        version = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
        assert container["image"].endswith(f":{version}"), f"{where} runs another version than {version}"


def check_probes(container, variables, where):
    listen = variables.get("RECONCILED__HTTP__LISTEN")
    if listen is None:
        # Nobody listens: the program itself is asked.
        assert container["readinessProbe"]["exec"]["command"][-1] == "status", f"{where}: nobody asks whether it is ready"
        return
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert listen.endswith(f":{ports['http']}"), f"{where}: nobody listens for the probes"
    for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        get = container[probe]["httpGet"]
        assert get["path"] == path and get["port"] in ports, f"{where}: {probe}"


def check_kubernetes():
    labels, selectors = [], []
    for path in sorted(KUBERNETES.rglob("*.yaml")):
        where = path.relative_to(ROOT)
        for document in documents(path):
            if document["kind"] == "Kustomization":
                for resource in document["resources"]:
                    assert (path.parent / resource).exists(), f"{where} names {resource}, which is not there"
                continue
            check_schema(document, where)
            spec = document["spec"]
            if "template" in spec:
                check_pod(spec["template"], where)
                labels.append(spec["template"]["metadata"]["labels"])
                replicas = spec["replicas"]
                assert (document["kind"] == "StatefulSet") == (replicas == 1), f"{where}: SQLite's state has one writer"
            selector = spec["selector"]
            selectors.append(selector.get("matchLabels", selector))
    assert labels and all(selector == label for selector in selectors for label in labels), "a selector misses"


def check_that_a_mistake_is_found():
    document = documents(KUBERNETES / "common" / "disruption.yaml")[0]
    document["spec"]["minAvailble"] = 1
    try:
        check_schema(document, "a misspelt key")
    except AssertionError:
        return
    raise AssertionError("the schemas accept a misspelt key: nothing was checked")


def build_kustomizations():
    if shutil.which("kubectl") is None:
        print("kubectl is not installed: the kustomizations were read, not built")
        return
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "kubernetes"
        shutil.copytree(KUBERNETES, copy)
        for way in sorted(folder.parent.name for folder in KUBERNETES.glob("*/kustomization.yaml") if folder.parent.name != "common"):
            shutil.copy(ROOT / "deploy" / "reconciled.example.toml", copy / way / "reconciled.toml")
            built = subprocess.run(
                ["kubectl", "kustomize", str(copy / way)], capture_output=True, text=True, check=False, timeout=60
            )
            assert built.returncode == 0, built.stderr
            kinds = sorted(document["kind"] for document in yaml.safe_load_all(built.stdout))
            assert {"ConfigMap", "PodDisruptionBudget", "Service"} < set(kinds), kinds
            for document in yaml.safe_load_all(built.stdout):
                check_schema(document, f"the kustomization {way}")


def check_compose(schema_path):
    path = ROOT / "deploy" / "compose.yaml"
    compose = documents(path)[0]
    validator = jsonschema.Draft7Validator(json.loads(schema_path.read_text()))
    problems = [error.message for error in validator.iter_errors(compose)]
    assert not problems, problems
    assert list(validator.iter_errors({**compose, "sevices": {}})), "the schema accepts a misspelt key: nothing was checked"
    services = compose["services"]
    for name, service in services.items():
        mounted = [volume.split(":")[0] for volume in service.get("volumes", [])]
        for file in (volume for volume in mounted if volume.startswith(".")):
            assert (path.parent / file).exists(), f"{name} mounts {file}, which is not there"
        for named in (volume for volume in mounted if not volume.startswith(".")):
            assert named in compose["volumes"], f"{name} mounts an unknown volume {named}"
        for other in service.get("depends_on", {}):
            assert other in services, f"{name} waits for {other}, which is no service"
        mode = service.get("network_mode", "")
        assert not mode or mode.removeprefix("service:") in services, f"{name}: {mode}"
        for variable in (key for key in service.get("environment", {}) if key.startswith("RECONCILED__")):
            check_variable(variable)
    for config in compose["configs"].values():
        assert (path.parent / config["file"]).exists(), config


def check_dockerfile():
    """Cargo wants every target of the manifest to exist, also those that the image does not build."""
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    copied = set(re.findall(r"^COPY (\w+) \1$", dockerfile, re.MULTILINE))
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    sources = [path for line in re.findall(r"^COPY (?!--)(.+)$", dockerfile, re.MULTILINE) for path in line.split()[:-1]]
    assert sources, "the image is built from nothing"
    for path in sources:
        assert (ROOT / path).exists(), f"the image copies {path}, which is not there"
        assert f"!{path}" in ignored, f"the image copies {path}, which Dockerfile.dockerignore keeps out"
    for path in (line[1:] for line in ignored if line.startswith("!")):
        assert path in sources, f"Dockerfile.dockerignore lets {path} in, which nothing copies"
    assert ".cargo" in sources, "the image's SQLite would be compiled otherwise than every other"
    manifest = tomllib.loads((ROOT / "Cargo.toml").read_text())
    for kind in ("bin", "test", "bench", "example"):
        for target in manifest.get(kind, []):
            path = target["path"]
            assert path.split("/")[0] in copied or path in dockerfile, f"the image's build does not have {path}"
    assert re.search(r"^USER (\d+):\d+$", dockerfile, re.MULTILINE).group(1) != "0", "the image runs as root"
    assert re.search(r"^HEALTHCHECK", dockerfile, re.MULTILINE), "the image has no health check"


def main():
    check_kubernetes()
    check_dockerfile()
    check_that_a_mistake_is_found()
    build_kustomizations()
    check_compose(Path(sys.argv[1]))
    print("The manifests are sound.")


if __name__ == "__main__":
    main()
