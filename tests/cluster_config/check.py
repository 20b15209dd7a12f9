"""Parses what is in cluster-config/ as those programs would for which it is written; prints what it found, as JSON.

Anything that is wrong is printed to standard error, and the exit code is 1. Asks for nothing over the network.
"""

import json
import pathlib
import re
import subprocess
import sys

import kubernetes_validate
import promql_parser
import yaml

BIN = pathlib.Path(sys.executable).parent
# Functions of Prometheus' templates that may be used in an annotation.
TEMPLATE = re.compile(r"\{\{ \$(value( \| (humanize|humanizeDuration|humanizePercentage))?|labels\.(\w+)) \}\}")
wrong = []


class Strict(yaml.SafeLoader):
    """Refuses a key that is there twice, which YAML forbids and its parsers take."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in {key for key in keys if keys.count(key) > 1}:
            raise yaml.YAMLError(f"{key} is there twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def documents(path):
    try:
        return [document for document in yaml.load_all(path.read_text(), Strict) if document is not None]
    except yaml.YAMLError as error:
        wrong.append(f"{path}: {error}")
        return []


def expect(holds, what):
    if not holds:
        wrong.append(what)


def run(*command):
    ended = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    expect(ended.returncode == 0, f"{command[0]} {command[-1]}: {ended.stdout}{ended.stderr}")


def names_of(expression, place):
    """The metrics that a PromQL expression reads, each with the labels that it names."""
    try:
        parsed = promql_parser.parse(expression)
    except ValueError as error:
        wrong.append(f"{place}: {error}: {expression}")
        return []
    found = []

    def selectors(node, outer):
        def visit(inner):
            if isinstance(inner, promql_parser.VectorSelector):
                found.append((inner.name, [matcher.name for matcher in inner.matchers.matchers] + outer))
            if isinstance(inner, promql_parser.AggregateExpr) and inner.modifier:
                # What is grouped by must be there as well.
                selectors(inner.expr, list(inner.modifier.labels))

        promql_parser.walk(node, visit)

    selectors(parsed, [])
    expect(found, f"{place}: it reads no metric: {expression}")
    return found


def prometheus(folder):
    [config] = documents(folder / "prometheus.yml")
    for rules in config["rule_files"]:
        expect((folder / rules).is_file(), f"prometheus.yml names {rules}, which is not there")
    jobs = {job["job_name"]: job["static_configs"] for job in config["scrape_configs"]}
    found, alerts = [], set()
    [rules] = documents(folder / "alerts.yml")
    for group in rules["groups"]:
        expect(set(group) == {"name", "rules"}, f"alerts.yml: the group {group.get('name')} has other fields")
        for rule in group["rules"]:
            name = rule.get("alert", "?")
            expect(set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, f"{name}: an unknown field")
            expect(re.fullmatch(r"\d+[smh]", rule.get("for", "0s")), f"{name}: for {rule.get('for')}")
            expect(rule["labels"]["severity"] in ("page", "ticket"), f"{name}: an unknown severity")
            expect(name not in alerts and name.startswith("Souk"), f"{name}: its name")
            alerts.add(name)
            for text in rule["annotations"].values():
                left = TEMPLATE.sub("", text)
                expect("{{" not in left and "}}" not in left, f"{name}: a template that is not understood: {text}")
            found += names_of(rule["expr"], name)
    return found, jobs


def grafana(folder):
    dashboard = json.loads((folder / "souk.json").read_text())
    found, ids = [], set()
    for panel in dashboard["panels"]:
        place = f"panel {panel['title']}"
        expect(panel["id"] not in ids, f"{place}: its id is another's")
        ids.add(panel["id"])
        grid = panel["gridPos"]
        expect(grid["x"] + grid["w"] <= 24, f"{place}: it is outside of the dashboard")
        expect(panel["type"] in ("row", "timeseries", "stat"), f"{place}: an unknown type")
        expect(panel["type"] == "row" or panel["targets"], f"{place}: it shows nothing")
        for target in panel.get("targets", []):
            found += names_of(target["expr"].replace("$__rate_interval", "1m"), place)
    for variable in dashboard["templating"]["list"]:
        if match := re.fullmatch(r"label_values\((\w+), (\w+)\)", str(variable.get("definition"))):
            found.append((match[1], [match[2]]))
    # What is laid over another hides it.
    cells = set()
    for grid in (panel["gridPos"] for panel in dashboard["panels"]):
        covers = {(x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])}
        expect(not covers & cells, f"two panels lie at {grid}")
        cells |= covers
    for path in sorted((folder / "provisioning").rglob("*.yaml")):
        expect(documents(path)[0]["apiVersion"] == 1, f"{path}: its version")
    return found


def monitors_each(environment, place):
    """A node refuses to start while it does not know how each server flushes."""
    hosts = [re.findall(r"//([^:]+):", environment[name]) for name in ("SOUK_NATS", "SOUK_NATS_MONITOR")]
    expect(hosts[0] and hosts[0] == hosts[1], f"{place}: it connects to {hosts[0]}, and looks at {hosts[1]}")


def compose(folder):
    path = folder / "compose.yaml"
    run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)
    [config] = documents(path)
    services = config["services"]
    mentioned = set(re.findall(r"\$\{(\w+)", path.read_text()))
    offered = set(re.findall(r"^(\w+)=", (folder / ".env.example").read_text(), re.M))
    expect(mentioned == offered, f".env.example offers {sorted(offered)}, and compose.yaml wants {sorted(mentioned)}")
    environment = set()
    for name, service in services.items():
        image = service["image"]
        expect(re.search(r":v?\d+\.\d+", image), f"{name}: {image} is not pinned to a minor version")
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            exists = (folder / source).exists() if source.startswith(".") else source in config["volumes"]
            expect(exists, f"{name}: there is no {source}")
        for other in service.get("depends_on", {}):
            expect(other in services, f"{name} depends on {other}")
        if image.startswith("souk:"):
            environment |= set(service["environment"])
            monitors_each(service["environment"], f"{path}: {name}")
        for port in service.get("ports", []):
            expect(port.startswith("127.0.0.1:"), f"{name}: {port} is open to others")
    run(BIN / "hadolint", folder / "Dockerfile")
    return services, environment


def kubernetes(folder):
    [kustomization] = documents(folder / "kustomization.yaml")
    # The one that whoever installs it makes.
    listed = [name for name in kustomization["resources"] if name != "secret.yaml"]
    expect("secret.yaml" in kustomization["resources"], "kustomization.yaml has no secret.yaml")
    expect("secret.yaml" in (folder / "../../.gitignore").read_text(), "secret.yaml could be committed")
    resources = []
    for name in [*listed, "secret.example.yaml"]:
        path = folder / name
        if path.is_dir():
            [base] = documents(path / "kustomization.yaml")
            for generated in base["configMapGenerator"]:
                for file in generated["files"]:
                    expect((path / file).is_file(), f"{path}/kustomization.yaml names {file}")
                resources.append({"kind": "ConfigMap", "metadata": {"name": generated["name"]}, "data": {}})
            left_out = {file.name for file in path.glob("*.conf")} - set(generated["files"])
            expect(not left_out, f"{path}/kustomization.yaml leaves out {left_out}")
            continue
        for resource in documents(path):
            try:
                kubernetes_validate.validate(resource, "1.37", strict=True)
            except kubernetes_validate.ValidationError as error:
                wrong.append(f"{path}: {'.'.join(map(str, error.path))}: {error.message}")
            resources.append(resource)
    unlisted = {path.name for path in folder.glob("*.yaml")} - set(listed) - {"kustomization.yaml", "secret.example.yaml", "secret.yaml"}
    expect(not unlisted, f"kustomization.yaml leaves out {unlisted}")
    named = {(resource["kind"], resource["metadata"]["name"]): resource for resource in resources}
    environment = set(named["ConfigMap", "souk"]["data"])
    monitors_each(named["ConfigMap", "souk"]["data"], "the ConfigMap souk")
    for (kind, name), resource in named.items():
        if kind in ("PodDisruptionBudget", "NetworkPolicy"):
            expect(("StatefulSet", name) in named, f"{kind} {name} is for nothing")
        if kind != "StatefulSet":
            continue
        spec, pod = resource["spec"], resource["spec"]["template"]
        expect(("Service", spec["serviceName"]) in named, f"{name}: no service {spec['serviceName']}")
        labels = pod["metadata"]["labels"]
        expect(spec["selector"]["matchLabels"].items() <= labels.items(), f"{name} does not select its own pods")
        [container] = pod["spec"]["containers"]
        for variable in container["env"]:
            source = variable.get("valueFrom", {}).get("secretKeyRef")
            if source:
                secret = named["Secret", source["name"]]
                expect(source["key"] in secret["stringData"], f"{name}: the secret has no {source['key']}")
            if name == "souk":
                environment.add(variable["name"])
        for source in container.get("envFrom", []):
            expect(("ConfigMap", source["configMapRef"]["name"]) in named, f"{name}: no such ConfigMap")
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", []) + [
            {"name": claim["metadata"]["name"]} for claim in spec["volumeClaimTemplates"]]}
        for mount in container["volumeMounts"]:
            expect(mount["name"] in volumes, f"{name}: no volume {mount['name']}")
        ports = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            expect(container[probe]["httpGet"]["port"] in ports, f"{name}: {probe} asks an unknown port")
    return named, environment


def scripts(folder, *others):
    files = sorted(path for path in folder.iterdir() if path.is_file()) + list(others)
    for path in files:
        run("bash", "-n", path)
    run(BIN / "shellcheck", "--external-sources", f"--source-path={folder}", *files)


def examine(root):
    alerts, jobs = prometheus(root / "prometheus")
    panels = grafana(root / "grafana")
    services, compose_environment = compose(root / "compose")
    for job, targets in jobs.items():
        for target in (target for static in targets for target in static["targets"]):
            expect(target.split(":")[0] in services, f"{job}: compose.yaml has no {target}")
    named, kubernetes_environment = kubernetes(root / "kubernetes")
    scripts(root / "local", root / "dist")
    images = {service["image"] for service in services.values()}
    for resource in named.values():
        if resource["kind"] == "StatefulSet":
            images |= {container["image"] for container in resource["spec"]["template"]["spec"]["containers"]}
    return {
        "metrics": sorted({(name, tuple(sorted(labels))) for name, labels in alerts + panels}),
        "environment": sorted(name for name in compose_environment | kubernetes_environment if name.startswith("SOUK_")),
        "nats_images": sorted(image for image in images if image.startswith("nats:")),
        "nats_environment": sorted(name for name in services["nats-1"]["environment"]),
    }


def main():
    try:
        found = examine(pathlib.Path(sys.argv[1]))
    except (LookupError, TypeError, ValueError) as error:
        # Something that the rest builds on is missing, which may have been said already.
        wrong.append(f"not understood: {error!r}, line {error.__traceback__.tb_next.tb_lineno} of this script")
    if wrong:
        print(*wrong, sep="\n", file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
