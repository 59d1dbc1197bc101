"""What lies under deploy/ is what real tools take: Helm, kubectl, Compose, hadolint, promtool.

They are in an environment of their own, `make fleet-tools`; a test whose tool is missing skips.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TinyModel
from fleet_tools import DEPLOY, ROOT, TOOLS, tool

from toxicity.commands import COMMANDS

KUBERNETES, COMPOSE = DEPLOY / "kubernetes", DEPLOY / "compose"
RENDERED = ("overlays/cpu", "overlays/gpu", "overlays/canary", "kserve", "locust")
CUSTOM = {"ServiceMonitor", "PrometheusRule", "InferenceService"}
"""Kinds of other projects, which Kubernetes itself has no schema of."""
KUBERNETES_VERSIONS = ("1.30", "1.37")


def run(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=280, **options
    )


def output(*command: Any) -> str:
    done = run(*command)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@functools.cache
def _kustomized(folder: str) -> str:
    return output(tool("kubectl"), "kustomize", KUBERNETES / folder)


def kustomized(folder: str) -> list[dict[str, Any]]:
    """Objects of a folder as kubectl renders them."""
    return [document for document in yaml.safe_load_all(_kustomized(folder)) if document]


def of_kind(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (one for one in objects if one["kind"] == kind)
    return found


def helm(*flags: Any) -> str:
    tool("kubectl")  # of the same environment
    return output(TOOLS / "python", DEPLOY / "helm" / "render.py", *flags)


# --- Helm and Kustomize ------------------------------------------------------------------
def test_the_chart_passes_helms_own_lint() -> None:
    assert not json.loads(helm("--lint"))["errors"]


@pytest.mark.parametrize(("folder", "flags"), [("base", ()), ("kserve", ("--values", "kserve"))])
def test_the_kubernetes_files_are_what_the_chart_renders(
    folder: str, flags: tuple[str, ...], tmp_path: Path
) -> None:
    values = [DEPLOY / "helm" / f"{flag}.json" if flag == "kserve" else flag for flag in flags]
    helm(tmp_path, *values)
    made = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text("utf-8") for path in (KUBERNETES / folder).iterdir()}
    kept.pop("kustomization.yaml")
    assert made == kept, "run `make fleet`"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"image": {"repository": "r", "tag": "latest"}}, "'/image/tag': 'not' failed"),
        ({"source": "/models"}, "'/source': '/models' does not match pattern"),
        ({"serversAPod": 0}, "'/serversAPod': minimum: got 0, want 1"),
    ],
)
def test_values_that_cannot_work_are_refused(
    values: dict[str, Any], words: str, tmp_path: Path
) -> None:
    tool("kubectl")
    file = tmp_path / "values.json"
    file.write_text(json.dumps(values))
    done = run(TOOLS / "python", DEPLOY / "helm" / "render.py", "--values", file)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and words in done.stderr


EVERYTHING = {
    **{"grpc": True, "gpu": 1, "serversAPod": 2, "keysSecret": "keys", "version": "3"},
    **{"signatureConfigMap": "release", "endpoint": "https://minio:9000", "track": "canary"},
    **{"allowOrigins": ["https://site.example"], "autoscaling": {"enabled": False}},
    **{"nodeSelector": {"pool": "gpu"}, "credentialsSecret": ""},
    "image": {"repository": "r", "digest": "sha256:" + "0" * 64, "pullSecrets": [{"name": "p"}]},
}


def with_values(values: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    file = folder / "values.json"
    file.write_text(json.dumps(values))
    return [one for one in yaml.safe_load_all(helm("--values", file)) if one]


def test_every_value_reaches_the_pod(tmp_path: Path) -> None:
    deployment = of_kind(with_values(EVERYTHING, tmp_path), "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (fetch,), (server,) = pod["initContainers"], pod["containers"]
    assert fetch["image"] == server["image"] == "r@sha256:" + "0" * 64
    assert {"--version=3", "--require-signature=/signature/release.pub"} <= set(fetch["args"])
    assert "envFrom" not in fetch
    assert {"name": "AWS_ENDPOINT_URL", "value": "https://minio:9000"} in fetch["env"]
    assert {"--grpc", "--replicas=2", "--keys=/keys/keys.json"} <= set(server["args"])
    assert "--allow-origin=https://site.example" in server["args"]
    assert server["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["nodeSelector"] == {"pool": "gpu"} and deployment["spec"]["replicas"] == 2
    assert not list(findings([deployment]))


# --- Schemas -----------------------------------------------------------------------------
def invalid(objects: list[dict[str, Any]], version: str, folder: Path) -> str:
    """What kubernetes-validate has against objects of Kubernetes' own kinds; "" for nothing."""
    file = folder / "objects.yaml"
    file.write_text(yaml.safe_dump_all(one for one in objects if one["kind"] not in CUSTOM))
    done = run(tool("kubernetes-validate"), "--strict", "-k", version, file)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("folder", RENDERED)
def test_every_rendered_object_is_valid(folder: str, version: str, tmp_path: Path) -> None:
    objects = kustomized(folder)
    for one in [*objects]:
        if one["kind"] == "InferenceService":  # its predictor is a pod and four fields more
            own = {"minReplicas", "maxReplicas", "labels"}
            spec = {k: v for k, v in one["spec"]["predictor"].items() if k not in own}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
            objects.append(pod)
    assert not invalid(objects, version, tmp_path)


def test_an_invalid_object_is_found(tmp_path: Path) -> None:
    objects = kustomized("overlays/cpu")
    of_kind(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["imag"] = "x"
    assert "imag" in invalid(objects, KUBERNETES_VERSIONS[0], tmp_path)


def test_the_rules_are_prometheus_own(tmp_path: Path) -> None:
    if not (promtool := shutil.which("promtool")):
        pytest.skip("promtool is not installed: apt-get install prometheus")
    rule = of_kind(kustomized("overlays/cpu"), "PrometheusRule")
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(rule["spec"]))
    count = sum(len(group["rules"]) for group in rule["spec"]["groups"])
    assert f"{count} rules found" in output(promtool, "check", "rules", file)
    output(promtool, "check", "config", "--syntax-only", COMPOSE / "prometheus.yaml")
    metric = of_kind(kustomized("overlays/cpu"), "HorizontalPodAutoscaler")["spec"]["metrics"][0]
    records = {r.get("record") for group in rule["spec"]["groups"] for r in group["rules"]}
    assert metric["pods"]["metric"]["name"] in records


def test_the_rules_of_prometheus_are_the_fleets_too(tmp_path: Path) -> None:
    """Group by group, and with a monitor in the cluster they pass the same tests by promtool."""
    groups = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text("utf-8"))["groups"]
    fleets = of_kind(kustomized("overlays/cpu"), "PrometheusRule")["spec"]["groups"][2:]
    needs_monitor = {"toxicity-quality", "toxicity-monitor"}
    assert fleets == [group for group in groups if group["name"] not in needs_monitor]
    for group in groups:
        assert ("toxicity_monitor_" in json.dumps(group)) == (group["name"] in needs_monitor)
    spec = of_kind(with_values({"monitoring": {"monitor": True}}, tmp_path), "PrometheusRule")
    assert spec["spec"]["groups"][2:] == groups
    if not (promtool := shutil.which("promtool")):
        pytest.skip("promtool is not installed: apt-get install prometheus")
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(spec["spec"]))
    shutil.copy(DEPLOY / "prometheus/rules_test.yml", tmp_path)
    output(promtool, "test", "rules", tmp_path / "rules_test.yml")


def test_the_rules_find_the_fleets_servers() -> None:
    """The job and the replica that they ask for are those that the ServiceMonitor gives."""
    objects = kustomized("overlays/cpu")
    monitor = of_kind(objects, "ServiceMonitor")["spec"]
    groups = of_kind(objects, "PrometheusRule")["spec"]["groups"]
    jobs = set(re.findall(r'\bjob="([^"]+)"', json.dumps(groups).replace("\\", "")))
    assert jobs == {of_kind(objects, "Service")["metadata"]["labels"][monitor["jobLabel"]]}
    (first, _) = monitor["endpoints"]
    assert first["relabelings"] == [{"targetLabel": "replica", "replacement": "replica-1"}]
    assert "track" in monitor["podTargetLabels"]


def test_alertmanager_takes_its_file() -> None:
    if not (amtool := shutil.which("amtool")):
        pytest.skip("amtool is not installed: apt-get install prometheus-alertmanager")
    output(amtool, "check-config", COMPOSE / "alertmanager.yaml")


# --- What the parts say of each other ----------------------------------------------------
def test_names_and_labels_of_the_fleet_fit() -> None:
    objects = kustomized("overlays/cpu")
    deployment, service = of_kind(objects, "Deployment"), of_kind(objects, "Service")
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"].items()
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        of_kind(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        of_kind(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(
            spread["labelSelector"]["matchLabels"]
            for spread in template["spec"]["topologySpreadConstraints"]
        ),
    ):
        assert selector and selector.items() <= labels
    ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == ports
    monitored = of_kind(objects, "ServiceMonitor")["spec"]
    assert {end["port"] for end in monitored["endpoints"]} <= {
        port["name"] for port in service["spec"]["ports"]
    }
    assert monitored["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    scaled = of_kind(objects, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"]
    assert scaled == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"], "the autoscaler says how many"


def test_a_canary_is_in_the_service_and_not_in_the_fleets_deployment() -> None:
    (canary,) = kustomized("overlays/canary")
    fleet = kustomized("overlays/cpu")
    labels = canary["spec"]["template"]["metadata"]["labels"].items()
    assert of_kind(fleet, "Service")["spec"]["selector"].items() <= labels
    assert not of_kind(fleet, "Deployment")["spec"]["selector"]["matchLabels"].items() <= labels
    assert canary["metadata"]["name"] != of_kind(fleet, "Deployment")["metadata"]["name"]
    fetch = canary["spec"]["template"]["spec"]["initContainers"][0]
    assert any(argument.startswith("--version=") for argument in fetch["args"])


def test_kserve_runs_the_pod_of_the_fleet() -> None:
    predictor = of_kind(kustomized("kserve"), "InferenceService")["spec"]["predictor"]
    pod = of_kind(kustomized("overlays/cpu"), "Deployment")["spec"]["template"]["spec"]
    for name in ("initContainers", "volumes", "securityContext"):
        assert predictor[name] == pod[name]
    (theirs,), (ours,) = copy.deepcopy(predictor["containers"]), pod["containers"]
    assert theirs.pop("name") == "kserve-container"
    assert theirs == {k: v for k, v in ours.items() if k != "name"}


# --- Policies ----------------------------------------------------------------------------
def pods(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for one in objects:
        if one["kind"] == "InferenceService":
            yield one["metadata"]["name"], one["spec"]["predictor"]
        elif "template" in one.get("spec", {}):
            yield one["metadata"]["name"], one["spec"]["template"]["spec"]


def findings(objects: list[dict[str, Any]]) -> Iterator[str]:
    """What a pod may not be: root, writable, privileged, unbounded, of a moving image."""
    for name, pod in pods(objects):
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{name}: has a token of the cluster"
        if any("hostPath" in volume for volume in pod.get("volumes", ())):
            yield f"{name}: sees the host's files"
        if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{name}: is in a namespace of the host"
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            yield from (f"{name}/{container['name']}: {f}" for f in of_container(container, pod))


def of_container(container: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    security = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
    if not security.get("runAsNonRoot"):
        yield "may be root"
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        yield "may gain privileges"
    if security.get("readOnlyRootFilesystem") is not True:
        yield "has a writable root"
    if security.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "keeps capabilities"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has every system call"
    if not re.search(r"@sha256:[0-9a-f]{64}$|:(?!latest$)[\w.-]+$", container["image"]):
        yield "is of an image that moves"
    resources = container.get("resources", {})
    if "memory" not in resources.get("limits", {}):
        yield "has no limit of memory"
    if {"cpu", "memory"} - resources.get("requests", {}).keys():
        yield "does not say what it needs"


@pytest.mark.parametrize("folder", RENDERED)
def test_no_pod_breaks_a_policy(folder: str) -> None:
    objects = kustomized(folder)
    assert list(pods(objects)) and not list(findings(objects))


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (("securityContext", "runAsNonRoot"), False, "may be root"),
        (("securityContext", "allowPrivilegeEscalation"), True, "may gain privileges"),
        (("securityContext", "readOnlyRootFilesystem"), False, "has a writable root"),
        (("securityContext", "capabilities"), {}, "keeps capabilities"),
        (("image",), "registry.example/toxicity-serving:latest", "is of an image that moves"),
        (("image",), "registry.example/toxicity-serving", "is of an image that moves"),
        (("resources", "limits"), {"cpu": "1"}, "has no limit of memory"),
        (("resources", "requests"), {}, "does not say what it needs"),
    ],
)
def test_a_broken_policy_is_found(path: tuple[str, ...], value: Any, found: str) -> None:
    objects = kustomized("overlays/cpu")
    at = of_kind(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert list(findings(objects)) == [f"toxicity/server: {found}"]


# --- Compose -----------------------------------------------------------------------------
def composed(*profiles: str) -> dict[str, Any]:
    """compose.yaml as Docker Compose itself reads it, every variable in its place."""
    flags = [flag for profile in profiles for flag in ("--profile", profile)]
    command = [tool("docker-compose"), "-f", COMPOSE / "compose.yaml", *flags, "config"]
    document: dict[str, Any] = json.loads(output(*command, "--format", "json"))
    return document


def test_compose_takes_the_file_and_each_profile_has_its_services() -> None:
    watching = {"monitor", "prometheus", "alertmanager", "grafana"}
    assert composed()["services"].keys() == {"server", "door", *watching}
    loading = composed("load")["services"]
    assert {"locust-master", "locust-worker"} <= loading.keys()
    gpu = composed("gpu")["services"]["server-gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia" and device["capabilities"] == ["gpu"]


def test_every_variable_of_compose_is_in_the_one_env_file() -> None:
    used = set(re.findall(r"\$\{([A-Z_]+)", (COMPOSE / "compose.yaml").read_text("utf-8")))
    lines = (COMPOSE / ".env").read_text("utf-8").splitlines()
    said = {line.partition("=")[0] for line in lines if line and not line.startswith("#")}
    assert used | {"COMPOSE_PROFILES"} == said


def test_no_service_of_compose_is_open_or_unbounded() -> None:
    for name, service in composed("cpu", "gpu", "monitoring", "load")["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"] and service["pids_limit"] and not service.get("privileged")
        assert re.search(r":(?!latest$)[\w.-]+$", service["image"]), name
        for port in service.get("ports", ()):
            assert port["host_ip"] == "127.0.0.1", name
        for volume in service.get("volumes", ()):
            assert volume["type"] == "volume" or volume["read_only"], name
        # What scores or watches has no way out of the machine.
        if name.startswith(("server", "monitor")):
            assert "outside" not in service["networks"], name


def test_the_files_that_compose_mounts_are_here() -> None:
    for name, service in composed("cpu", "monitoring", "load")["services"].items():
        for volume in service.get("volumes", ()):
            source = Path(volume["source"])
            made_by_users = source.name == "model_repository"
            others = source.name in ("prometheus", "grafana") and source.parent == DEPLOY
            assert volume["type"] == "volume" or made_by_users or others or source.exists(), name


def commands_of_the_fleet() -> Iterator[list[str]]:
    """What pods and services call `toxicity` with."""
    for folder in ("overlays/cpu", "overlays/canary", "kserve"):
        for _, pod in pods(kustomized(folder)):
            yield from (one["args"] for one in [*pod["initContainers"], *pod["containers"]])
    for service in composed("gpu", "monitoring")["services"].values():
        if service["image"].startswith("toxicity-serving"):
            yield service["command"]


def test_commands_of_pods_and_services_and_their_flags_exist() -> None:
    called: dict[str, set[str]] = {}
    for command, *flags in commands_of_the_fleet():
        found = {flag.partition("=")[0] for flag in flags if flag.startswith("--")}
        called.setdefault(command, set()).update(found)
    assert called.keys() == {"fetch", "serve", "monitor"}
    known = {name for entries in COMMANDS.values() for name in entries}
    for command in called.keys() & known:
        text = output(sys.executable, "-m", "toxicity", command, "--help")
        flags_known = set(re.findall(r"--[a-z0-9-]+", text))
        assert called[command] <= flags_known, command
    if absent := called.keys() - known:
        pytest.skip(f"no command {', '.join(sorted(absent))} in this checkout")


# --- Images ------------------------------------------------------------------------------
IMAGES = ("Containerfile", "Containerfile.slim")


@pytest.mark.parametrize("name", IMAGES)
def test_hadolint_has_nothing_against_the_image(name: str) -> None:
    found = output(tool("hadolint"), "--failure-threshold", "style", DEPLOY / "images" / name)
    assert not found


@pytest.mark.parametrize("name", IMAGES)
def test_the_run_folder_is_one_that_the_server_makes(name: str) -> None:
    """A volume's own folder belongs to the cluster: only one within it can be closed to others."""
    text = (DEPLOY / "images" / name).read_text("utf-8")
    (folder,) = re.findall(r"TOXICITY_SERVE_RUN_DIR=(\S+)", text)
    assert f'"--run-dir", "{folder}"]' in text
    (server,) = of_kind(kustomized("overlays/cpu"), "Deployment")["spec"]["template"]["spec"][
        "containers"
    ]
    assert server["livenessProbe"]["exec"]["command"][-2:] == ["--run-dir", folder]
    mounted = {mount["mountPath"] for mount in server["volumeMounts"]}
    assert Path(folder).parent.as_posix() in mounted
    tmpfs = composed()["services"]["server"]["tmpfs"]
    assert any(one.startswith(f"{Path(folder).parent}:") for one in tmpfs)


@pytest.mark.parametrize("name", IMAGES)
def test_the_image_runs_as_nobody_and_says_what_it_is(name: str) -> None:
    text = (DEPLOY / "images" / name).read_text("utf-8")
    last = text.rsplit("\nFROM ", 1)[1]
    assert re.findall(r"^USER (.*)$", last, re.MULTILINE)[-1] == "10001:10001"
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in last
    assert re.search(r'^    CMD \["python", "-m", "serve.check"', last, re.MULTILINE)
    for line in re.findall(r"^(?:ENTRYPOINT|CMD) (.*)$", last, re.MULTILINE):
        assert isinstance(json.loads(line), list), "no shell is needed"


def test_what_an_image_installs_is_pinned() -> None:
    def names(file: Path) -> list[str]:
        lines = file.read_text("utf-8").splitlines()
        return [re.split(r"[\[=;]", line)[0].lower().replace("_", "-") for line in lines]

    pinned = set(names(ROOT / "constraints.txt"))
    for file in ("requirements.txt", "requirements-tools.txt"):
        wanted = [n for n in names(DEPLOY / "images" / file) if n and not n.startswith("#")]
        assert wanted and set(wanted) <= pinned


@pytest.mark.slow
def test_an_image_scores_as_the_host_does(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Building one takes minutes, so it is built before: deploy/README.md has the command."""
    image = os.environ.get("TOXICITY_TEST_IMAGE")
    if not image:
        pytest.skip("TOXICITY_TEST_IMAGE names no image: build one as deploy/README.md says")
    engine = os.environ.get("TOXICITY_TEST_ENGINE", "podman")
    tiny_model.publish(tmp_path / "repository")
    tmp_path.chmod(0o755)
    (tmp_path / "repository").chmod(0o755)
    command = [sys.executable, DEPLOY / "images" / "smoke.py", image, "--engine", engine]
    found = json.loads(output(*command, "--repository", tmp_path / "repository"))
    assert found["largest_logit_difference"] <= 1e-4 and found["bill_of_materials"] > 30


def test_the_shell_of_the_build_is_one() -> None:
    output("sh", "-n", DEPLOY / "images" / "build.sh")
