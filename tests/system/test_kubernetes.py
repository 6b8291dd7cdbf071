"""What deploy/kubernetes holds: kustomize builds it, Kubernetes' schemas take it, and it fits the
service that it runs."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import typing
import urllib.error
import urllib.request
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic import SecretStr

from ai_agent_service.config.settings import Settings, load_settings
from ai_agent_service.runtime.configuration import load_configuration
from ai_agent_service.runtime.plugin_loader import load_plugins
from ai_agent_service.server.application import create_app
from ai_agent_service.server.process import ShutdownTimeouts
from tests.support.events import wait_until
from tests.support.processes import ROOT, run, serving
from tests.support.service import configuration

FOLDER = ROOT / "deploy" / "kubernetes"
COMPONENTS = sorted(path.name for path in (FOLDER / "components").iterdir())
BUILT = {
    "development": "overlays/development",
    "production": "overlays/production",
    "migration": "overlays/production/migration",
    "everything": (
        "overlays/production",
        "overlays/production/migration",
        *(f"components/{name}" for name in COMPONENTS),
    ),
}
"""What is built: a folder as it is, or one of an operator's that brings several together."""

VERSIONS = ("1.30", "1.34", "1.37")
"""The oldest Kubernetes that docs/kubernetes.md names, the newest that the schemas tell of, and one
between."""

OURS = "ai-agent-service"
OF_OTHERS = {"gateway.networking.k8s.io/v1", "monitoring.coreos.com/v1"}
"""What has no schema, for it is none of Kubernetes' own."""

WORKLOADS = ("Deployment", "StatefulSet", "Job")
Manifest = dict[str, Any]

pytestmark = [pytest.mark.xdist_group("kubernetes"), pytest.mark.timeout(120)]
everything = pytest.mark.parametrize("name", BUILT)
served = pytest.mark.parametrize("name", [name for name in BUILT if name != "migration"])


@functools.cache
def kustomize() -> list[str]:
    """The command that builds a folder: what `make test` unpacked, or else the system's. Without it
    tests are skipped; in CI they fail."""
    unpacked = Path(sys.prefix) / "kubectl" / "kubectl"
    if unpacked.exists():
        return [str(unpacked), "kustomize"]
    if found := shutil.which("kustomize"):
        return [found, "build"]
    if found := shutil.which("kubectl"):
        return [found, "kustomize"]
    problem = "kustomize or kubectl is needed to build what is in deploy/kubernetes"
    if os.environ.get("CI"):
        pytest.fail(problem)
    pytest.skip(problem)


def build(folder: Path) -> list[Manifest]:
    """The manifests that kustomize makes of a folder."""
    done = subprocess.run(
        [*kustomize(), str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Manifest]]:
    """The manifests of all that `BUILT` names."""
    found: dict[str, list[Manifest]] = {}
    for name, parts in BUILT.items():
        if isinstance(parts, str):
            found[name] = build(FOLDER / parts)
            continue
        folder = tmp_path_factory.mktemp("overlay").resolve()
        paths = [os.path.relpath(FOLDER / part, folder) for part in parts]
        mine = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": "mine",
            "resources": [path for path in paths if "/components/" not in path],
            "components": [path for path in paths if "/components/" in path],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(mine), encoding="utf-8")
        found[name] = build(folder)
    return found


@pytest.fixture
def manifests(built: dict[str, list[Manifest]], name: str) -> list[Manifest]:
    """The manifests of the test's `name`."""
    return built[name]


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    """Those of these kinds."""
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def pods(manifests: list[Manifest]) -> Iterator[tuple[Manifest, dict[str, Any]]]:
    """Each workload, with the specification of its pods."""
    for workload in of_kind(manifests, *WORKLOADS):
        yield workload, workload["spec"]["template"]["spec"]


def containers(manifests: list[Manifest]) -> Iterator[dict[str, Any]]:
    """The containers of all pods."""
    for _, pod in pods(manifests):
        yield from (*pod.get("initContainers", ()), *pod["containers"])


def server(manifests: list[Manifest]) -> Manifest:
    """The Deployment of the service."""
    [found] = [
        manifest
        for manifest in of_kind(manifests, "Deployment")
        if manifest["metadata"]["name"] == OURS
    ]
    return found


def values(container: dict[str, Any]) -> dict[str, str]:
    """The variables of a container that have their values in the manifest."""
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


def find_labels(workload: Manifest) -> dict[str, str]:
    """The labels of the pods."""
    labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def selected(labels: dict[str, str], manifests: list[Manifest]) -> list[str]:
    """The workloads whose pods have these labels."""
    return [
        workload["metadata"]["name"]
        for workload, _ in pods(manifests)
        if labels.items() <= find_labels(workload).items()
    ]


def variables(file: Path) -> dict[str, str]:
    """What an env file holds."""
    lines = [
        line
        for line in file.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


EXAMPLES = {
    OURS: variables(FOLDER / "secret.env.example"),
    "open-webui": variables(FOLDER / "components/open-webui/secret.env.example"),
}
"""The keys that the operator's Secrets have."""


def is_secret(variable: str) -> bool:
    """Whether a variable holds what nobody may read."""
    field = Settings.model_fields.get(variable.lower())
    if field is not None:
        return SecretStr in (field.annotation, *typing.get_args(field.annotation))
    return re.search(r"(KEYS?|TOKEN|SECRET|PASSWORD)$", variable) is not None


@pytest.mark.parametrize("version", VERSIONS)
@everything
def test_every_manifest_is_valid_for_kubernetes(manifests: list[Manifest], version: str) -> None:
    assert manifests
    without_a_schema = set()
    for manifest in manifests:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            without_a_schema.add(manifest["apiVersion"])
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", manifest["metadata"]["name"])
    assert without_a_schema <= OF_OTHERS


def test_the_schemas_take_no_field_that_is_misspelt(built: dict[str, list[Manifest]]) -> None:
    [container] = server(built["production"])["spec"]["template"]["spec"]["containers"]
    wrong = {**container, "readynessProbe": {}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x"},
        "spec": {"containers": [wrong]},
    }
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)


@everything
def test_nothing_is_there_twice_and_all_is_in_one_namespace(manifests: list[Manifest]) -> None:
    named = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert len(set(named)) == len(named)
    assert (
        len(
            {
                manifest["metadata"]["namespace"]
                for manifest in manifests
                if manifest["kind"] != "Namespace"
            }
        )
        == 1
    )


@everything
def test_every_variable_is_one_that_is_read(manifests: list[Manifest]) -> None:
    known = {field.upper() for field in Settings.model_fields}
    for container in containers(manifests):
        if container["name"] not in ("postgres", "open-webui"):
            assert {entry["name"] for entry in container["env"]} <= known
    for settings in of_kind(manifests, "ConfigMap"):
        if settings["metadata"]["name"].startswith(f"{OURS}-settings"):
            assert set(settings["data"]) <= known
    named = {
        name
        for file in FOLDER.glob("overlays/*/config/*.json")
        for name in re.findall(r"\$\{(\w+)\}", file.read_text("utf-8"))
    }
    assert set(EXAMPLES[OURS]) <= known | named
    assert named <= set(EXAMPLES[OURS])


def test_the_variables_of_open_webui_are_those_that_its_page_explains(
    built: dict[str, list[Manifest]],
) -> None:
    page = (ROOT / "docs" / "open-webui.md").read_text(encoding="utf-8")
    [webui] = [
        container
        for container in containers(built["everything"])
        if container["name"] == "open-webui"
    ]
    assert [entry["name"] for entry in webui["env"] if f"`{entry['name']}`" not in page] == []
    headers = json.loads(values(webui)["OPENAI_API_CONFIGS"])
    assert [headers] == [
        json.loads(found) for found in set(re.findall(r"OPENAI_API_CONFIGS='(.*)'", page))
    ]


@everything
def test_no_secret_has_its_value_in_a_manifest(manifests: list[Manifest]) -> None:
    assert of_kind(manifests, "Secret") == []
    for container in containers(manifests):
        assert [name for name in values(container) if is_secret(name)] == []
    for found in of_kind(manifests, "ConfigMap"):
        assert [name for name in found["data"] if is_secret(name)] == []
    assert {value for example in EXAMPLES.values() for value in example.values()} == {""}


@everything
def test_what_is_referred_to_is_there(manifests: list[Manifest]) -> None:
    configs = {manifest["metadata"]["name"] for manifest in of_kind(manifests, "ConfigMap")}
    claims = {
        manifest["metadata"]["name"] for manifest in of_kind(manifests, "PersistentVolumeClaim")
    }
    accounts = {manifest["metadata"]["name"] for manifest in of_kind(manifests, "ServiceAccount")}
    for workload, pod in pods(manifests):
        assert {pod["serviceAccountName"]} <= accounts if "serviceAccountName" in pod else True
        templates = workload["spec"].get("volumeClaimTemplates", ())
        volumes = {
            volume["name"]
            for volume in (*pod.get("volumes", ()), *(each["metadata"] for each in templates))
        }
        for volume in pod.get("volumes", ()):
            assert volume.get("configMap", {"name": None})["name"] in {*configs, None}
            assert volume.get("persistentVolumeClaim", {"claimName": None})["claimName"] in {
                *claims,
                None,
            }
            assert "sizeLimit" in volume.get("emptyDir", {"sizeLimit": None})
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            for source in container.get("envFrom", ()):
                assert source.get("configMapRef", {"name": None})["name"] in {*configs, None}
                assert source.get("secretRef", {"name": OURS})["name"] in EXAMPLES
            for entry in container["env"]:
                if reference := entry.get("valueFrom", {}).get("secretKeyRef"):
                    assert reference["key"] in EXAMPLES[reference["name"]]
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    for monitor in of_kind(manifests, "PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            credentials = endpoint["authorization"]["credentials"]
            assert (
                f"secret generic {credentials['name']} --from-literal={credentials['key']}=" in page
            )


@everything
def test_selectors_find_the_pods_that_they_are_meant_for(manifests: list[Manifest]) -> None:
    for workload in of_kind(manifests, "Deployment", "StatefulSet"):
        assert selected(workload["spec"]["selector"]["matchLabels"], manifests) == [
            workload["metadata"]["name"]
        ]
    for service in of_kind(manifests, "Service"):
        assert selected(service["spec"]["selector"], manifests) == [service["metadata"]["name"]]
    for other in of_kind(manifests, "PodDisruptionBudget", "PodMonitor"):
        assert selected(other["spec"]["selector"]["matchLabels"], manifests) == [
            other["metadata"]["name"]
        ]
    for scaler in of_kind(manifests, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        [workload] = [
            each
            for each in of_kind(manifests, target["kind"])
            if each["metadata"]["name"] == target["name"]
        ]
        assert "replicas" not in workload["spec"]  # each apply would undo what the autoscaler did
    for workload, pod in pods(manifests):
        for spread in pod.get("topologySpreadConstraints", ()):
            assert selected(spread["labelSelector"]["matchLabels"], manifests) == [
                workload["metadata"]["name"]
            ]


@everything
def test_ports_are_those_that_containers_have(manifests: list[Manifest]) -> None:
    ports = {
        container["name"]: {port["name"] for port in container.get("ports", ())}
        for container in containers(manifests)
    }
    for container in containers(manifests):
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if request := container.get(probe, {}).get("httpGet"):
                assert request["port"] in ports[container["name"]]
    services = of_kind(manifests, "Service")
    for service in services:
        [workload] = [
            each
            for each, _ in pods(manifests)
            if each["metadata"]["name"] == service["metadata"]["name"]
        ]
        [container] = workload["spec"]["template"]["spec"]["containers"]
        assert [port["targetPort"] for port in service["spec"]["ports"]] == [
            port["name"] for port in container["ports"]
        ]
        assert [port["port"] for port in service["spec"]["ports"]] == [
            port["containerPort"] for port in container["ports"]
        ]
    known = {
        service["metadata"]["name"]: {port["name"] for port in service["spec"]["ports"]}
        for service in services
    }
    for ingress in of_kind(manifests, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                assert (
                    path["backend"]["service"]["port"]["name"]
                    in known[path["backend"]["service"]["name"]]
                )
    for container in containers(manifests):
        for address in re.findall(
            r"http://([\w-]+):(\d+)/v1", values(container).get("OPENAI_API_BASE_URLS", "")
        ):
            assert address == (OURS, "8000")
        if host := values(container).get("POSTGRES_HOST"):
            assert "postgres" in known[host]


@everything
def test_pods_have_no_more_rights_than_they_need(manifests: list[Manifest]) -> None:
    for workload, pod in pods(manifests):
        assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for container in pod["containers"]:
            allowed = container["securityContext"]
            assert (allowed["allowPrivilegeEscalation"], allowed["capabilities"]) == (
                False,
                {"drop": ["ALL"]},
            )
            if workload["metadata"]["name"] != "open-webui":  # whose image is made for root
                assert (
                    pod["securityContext"]["runAsNonRoot"],
                    allowed["readOnlyRootFilesystem"],
                ) == (True, True)
            if container["image"].split("/")[-1].startswith(OURS):
                assert (
                    pod["securityContext"]["runAsUser"],
                    pod["securityContext"]["runAsGroup"],
                ) == (10001, 10001)


@everything
def test_images_are_pinned_and_resources_are_set(manifests: list[Manifest]) -> None:
    for container in containers(manifests):
        name, _, tag = container["image"].partition("@")[0].rpartition(":")
        assert name
        assert tag not in ("", "latest", "main")
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]


@served
def test_a_pod_has_the_time_that_the_service_takes_to_end(manifests: list[Manifest]) -> None:
    pod = server(manifests)["spec"]["template"]["spec"]
    [container] = pod["containers"]
    found = values(container)
    patience = ShutdownTimeouts(float(found["DRAIN_SECONDS"]), float(found["SHUTDOWN_TIMEOUT"]))
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > before + patience.total
    assert before + patience.drain >= 10
    assert server(manifests)["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def reaches(peers: list[dict[str, Any]], address: str) -> bool:
    """Whether addresses of a rule have this one."""
    wanted = ip_address(address)
    blocks = [peer["ipBlock"] for peer in peers if "ipBlock" in peer]
    return any(
        wanted in ip_network(block["cidr"])
        and not any(wanted in ip_network(inner) for inner in block.get("except", ()))
        for block in blocks
    )


@served
def test_the_network_lets_through_what_is_needed_and_no_more(manifests: list[Manifest]) -> None:
    policies = {
        policy["metadata"]["name"]: policy["spec"] for policy in of_kind(manifests, "NetworkPolicy")
    }
    for spec in policies.values():
        meant = selected(spec["podSelector"]["matchLabels"], manifests)
        named = {
            port["name"]
            for workload, pod in pods(manifests)
            if workload["metadata"]["name"] in meant
            for container in pod["containers"]
            for port in container.get("ports", ())
        }
        assert {port["port"] for rule in spec.get("ingress", ()) for port in rule["ports"]} <= named
    guarded = {
        name
        for spec in policies.values()
        for name in selected(spec["podSelector"]["matchLabels"], manifests)
    }
    assert guarded == {workload["metadata"]["name"] for workload, _ in pods(manifests)}
    for spec in policies.values():
        for rule in (*spec.get("ingress", ()), *spec.get("egress", ())):
            assert rule["ports"]
            assert rule.get("from") or rule.get("to")
            for peer in (*rule.get("from", ()), *rule.get("to", ())):
                labels = peer.get("podSelector", {"matchLabels": {}})["matchLabels"]
                assert selected(labels, manifests) or "open-webui" in labels.values()
    for rule in policies[OURS]["egress"]:
        assert not reaches(rule["to"], "169.254.169.254")
        assert not reaches(rule["to"], "fd00:ec2::254") or {
            port["port"] for port in rule["ports"]
        } == {5432}
    opened = {
        port["port"]: rule["to"] for rule in policies[OURS]["egress"] for port in rule["ports"]
    }
    assert set(opened) == {53, 5432, 443}
    assert (reaches(opened[443], "1.1.1.1"), reaches(opened[443], "10.0.0.1")) == (True, False)
    assert (reaches(opened[5432], "10.0.0.1"), reaches(opened[5432], "1.1.1.1")) == (True, False)


def test_what_is_opened_hands_on_streams_and_large_requests_to_routes_that_there_are(
    built: dict[str, list[Manifest]], tmp_path: Path
) -> None:
    [ingress], [route] = (
        of_kind(built["everything"], "Ingress"),
        of_kind(built["everything"], "HTTPRoute"),
    )
    nginx = {
        name.split("/")[1]: value for name, value in ingress["metadata"]["annotations"].items()
    }
    [gateway] = route["spec"]["rules"]
    settings = load_settings()
    assert nginx["proxy-buffering"] == "off"
    assert float(nginx["proxy-read-timeout"]) > settings.request_timeout
    assert float(gateway["timeouts"]["request"].removesuffix("s")) > settings.request_timeout
    assert nginx["proxy-body-size"] == f"{settings.max_request_bytes // 1024**2}m"
    [service] = [
        each for each in of_kind(built["everything"], "Service") if each["metadata"]["name"] == OURS
    ]
    assert gateway["backendRefs"] == [{"name": OURS, "port": service["spec"]["ports"][0]["port"]}]
    routes = create_app(configuration(tmp_path)).openapi()["paths"]
    opened = [path["path"] for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]]
    assert opened == [match["path"]["value"] for match in gateway["matches"]]
    for path in opened:
        assert any(route == path or route.startswith(f"{path}/") for route in routes)
    assert not any(
        route.startswith(tuple(opened))
        for route in ("/metrics", "/admin/reload", "/docs", "/health")
    )


def test_the_pods_are_scraped_where_the_metrics_are(
    built: dict[str, list[Manifest]], tmp_path: Path
) -> None:
    [monitor] = of_kind(built["everything"], "PodMonitor")
    [container] = server(built["everything"])["spec"]["template"]["spec"]["containers"]
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["path"] in create_app(configuration(tmp_path)).openapi()["paths"]
    assert endpoint["port"] in {port["name"] for port in container["ports"]}


class Mounted:
    """A ConfigMap in a folder, as Kubernetes lays it down: links to a folder of one version, which
    is switched at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._version = 0
        folder.mkdir()

    def lay(self, files: dict[str, str]) -> None:
        """Has the folder hold these files and no others."""
        self._version += 1
        version = self._folder / f"..{self._version}"
        version.mkdir()
        for name, text in files.items():
            (version / name).write_text(text, encoding="utf-8")
            if not (self._folder / name).is_symlink():
                (self._folder / name).symlink_to(Path("..data") / name)
        (self._folder / "..data_tmp").symlink_to(version.name)
        (self._folder / "..data_tmp").replace(self._folder / "..data")


def build_environment(
    manifests: list[Manifest], workload: Manifest, folder: Path
) -> dict[str, str]:
    """The variables of a pod, with `folder` for its file system, and a database and a key that the
    Secret might name."""
    [container] = workload["spec"]["template"]["spec"]["containers"]
    found: dict[str, str] = {}
    for source in container["envFrom"]:
        if reference := source.get("configMapRef"):
            [settings] = [
                each
                for each in of_kind(manifests, "ConfigMap")
                if each["metadata"]["name"] == reference["name"]
            ]
            found |= settings["data"]
    found |= {
        name: value.replace("/app/", f"{folder}/") for name, value in values(container).items()
    }
    secret = {"API_KEYS": KEY, "DATABASE_URL": f"sqlite:///{folder}/conversations.db"}
    found |= {
        entry["name"]: secret[entry["name"]]
        for entry in container["env"]
        if entry["name"] in secret
    }
    here = {"HOST": "127.0.0.1", "LOG_FORMAT": "text"}  # what the test reads the address from
    return {**found, **{name: value for name, value in here.items() if name in found}}


KEY = "k" * 24


def asked(url: str) -> tuple[int, Any]:
    """The status and the JSON that is answered there."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers={"x-api-key": KEY}), timeout=10
        ) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def versions(url: str) -> dict[str, str]:
    """The agents of a service, with their versions."""
    return {agent["agent_id"]: agent["version"] for agent in asked(f"{url}/agents")[1]}


def find_config(manifests: list[Manifest], pod: dict[str, Any]) -> dict[str, str]:
    """The files that the ConfigMap of the pod's volume `config` has."""
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == "config"]
    [config] = [
        each
        for each in of_kind(manifests, "ConfigMap")
        if each["metadata"]["name"] == volume["configMap"]["name"]
    ]
    files: dict[str, str] = config["data"]
    return files


def test_the_service_runs_as_a_pod_would_run_it(
    built: dict[str, list[Manifest]], tmp_path: Path
) -> None:
    """It waits for the migration, is ready after it, and reloads what the ConfigMap says then."""
    manifests = built["production"]
    deployment, [job] = server(manifests), of_kind(built["migration"], "Job")
    pod = deployment["spec"]["template"]["spec"]
    [container], [migration] = pod["containers"], job["spec"]["template"]["spec"]["containers"]
    [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == "config"]
    assert "subPath" not in mount
    mounted, files = (
        Mounted(tmp_path / mount["mountPath"].removeprefix("/app/")),
        find_config(manifests, pod),
    )
    mounted.lay(files)
    [port] = container["ports"]
    environment = build_environment(manifests, deployment, tmp_path)
    assert environment["PORT"] == str(port["containerPort"])
    paths = [
        container[probe]["httpGet"]["path"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    ]
    assert container["args"] == ["serve"]
    with serving(tmp_path, **{**environment, "PORT": "0", "DRAIN_SECONDS": "0"}) as (url, _):
        assert [asked(url + path)[0] for path in paths] == [
            200,
            200,
            503,
        ]  # its tables are not there yet, and no pod makes them
        done = run(
            tmp_path, *migration["args"], **build_environment(built["migration"], job, tmp_path)
        )
        assert (done.returncode, done.stderr) == (0, "")
        wait_until(lambda: [asked(url + path)[0] for path in paths] == [200, 200, 200])
        before = versions(url)
        assert set(before) == {
            agent["agent_id"] for agent in json.loads(files["agent_config.json"])
        }
        mounted.lay({**files, "research_agent.txt": "You are somebody else."})
        wait_until(lambda: versions(url) != before)
        assert {agent for agent, version in versions(url).items() if version != before[agent]} == {
            "research_agent"
        }


@pytest.mark.parametrize("name", ["development", "production"])
def test_the_agents_of_an_overlay_have_no_faults(manifests: list[Manifest], tmp_path: Path) -> None:
    pod = server(manifests)["spec"]["template"]["spec"]
    folder = tmp_path / "config"
    Mounted(folder).lay(find_config(manifests, pod))
    settings = load_settings(
        agent_config_file=folder / "agent_config.json",
        mcp_config_file=folder / "mcp.json",
        prompts_dir=folder,
    )
    found = load_configuration(settings, load_plugins()[0])
    assert found.warnings == ()
    assert all(
        agent.memory for agent in found.agents
    )  # so that pods whose tables are not there are not ready


def test_each_folder_that_the_page_applies_is_there() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    named = set(re.findall(r"deploy/kubernetes/[\w./-]*[\w]", page))
    assert f"deploy/kubernetes/{BUILT['production']}" in named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    assert VERSIONS[0] in page
